"""Whole runs, as an administrator would think of them."""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import pytest

from tests.simulation.tenant import MISSING, Record, Request, Tenant
from tests.support import (
    GONE,
    HOUR,
    MINUTE,
    NOW,
    SET_UP,
    STAMPED,
    STUCK,
    Run,
    add_situations,
    names,
    writes,
)

SCOPE = "localhost: grace period 10 minutes, deletion limit 100"
"""What a dry run and the prompts begin with."""


def offsets(tenant: Tenant) -> list[int]:
    """The pages of the user listing that were asked for."""
    listing = [each for each in tenant.requests if each.path.endswith("/users")]
    return [int(each.params["offset"]) for each in listing]


# The first scenarios


@pytest.mark.parametrize(
    ("argv", "stdin", "changed"),
    [
        pytest.param("", "", {"begun": STAMPED, "stuck": GONE}, id="all users"),
        pytest.param("begun", "", {"begun": STAMPED}, id="one user to stamp"),
        pytest.param("stuck", "", {"stuck": GONE}, id="one user to delete"),
        pytest.param(
            *("young stuck begun named", "", {"begun": STAMPED, "stuck": GONE}),
            id="several users",
        ),
        pytest.param(
            *("--no-force", "y\ny\n", {"begun": STAMPED, "stuck": GONE}),
            id="asked, yes",
        ),
        pytest.param("--no-force", "n\nn\n", {}, id="asked, no"),
        pytest.param("--no-force", "n\ny\n", {"stuck": GONE}, id="asked, no and yes"),
        pytest.param(
            *("--no-force", "y\nn\n", {"begun": STAMPED}), id="asked, yes and no"
        ),
        pytest.param("young named done", "", {}, id="nothing to do"),
        pytest.param("-g 9 young", "", {"young": GONE}, id="a grace period just over"),
    ],
)
def test_scenarios(
    tenant: Tenant, run: Run, argv: str, stdin: str, changed: dict[str, str]
) -> None:
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(*argv.split(), stdin=stdin)
    assert result.status == 0
    assert names(tenant, ids) == {**before, **changed}
    assert len(writes(tenant)) == len(changed)
    if "--no-force" not in argv:
        assert (result.out, result.err) == ("", "")


def test_the_life_of_one_phone(tenant: Tenant, run: Run) -> None:
    ids = {"ann": tenant.add_phone("ann")}
    life = []
    for now in (NOW, NOW + 10 * MINUTE - 1, NOW + 10 * MINUTE, NOW + HOUR):
        assert run(now=now).status == 0
        life.append(names(tenant, ids)["ann"])
    assert life == [STAMPED, STAMPED, GONE, GONE]
    assert len(writes(tenant)) == 2


# Named users


def test_several_hundred_users_are_looked_up_by_the_hundred(
    tenant: Tenant, run: Run
) -> None:
    asked = [f"user{n}" for n in range(250)]
    ids = {user: tenant.add_phone(user) for user in asked}
    bystander = tenant.add_phone("bystander")
    assert run("-v", *asked[:120], "nobody", *asked[120:]).status == 1
    assert set(names(tenant, ids).values()) == {STAMPED}
    assert tenant.phones[bystander]["name"] == ""
    lookups = [r.params["username_list"] for r in tenant.requests if r.path[-1] == "s"]
    assert list(map(len, map(json.loads, lookups))) == [100, 100, 51]


@pytest.mark.parametrize(
    "asked",
    [
        ["ANN", "bob@example.com"],
        ["annie", "B.Obson"],
        ["ann", "Ann", "ANNIE", "annie@EXAMPLE.com", "Bob@Example.COM", "BOB"],
    ],
    ids=["other case", "aliases", "all at once"],
)
def test_names_are_matched_as_duo_does(
    tenant: Tenant, run: Run, asked: list[str]
) -> None:
    old: Record = {f"alias{n}": MISSING for n in range(1, 5)}  # they are in aliases
    tenant.add_user("Ann", aliases=["Annie", "annie@example.com"], **old)
    tenant.add_user("BOB", aliases=["b.obson", "Bob@example.com"])
    ids = {user: tenant.add_phone(user) for user in ("ann", "bob", "cleo")}
    result = run("-v", "--json", *asked)
    assert (result.status, result.kinds) == (0, ["stamped", "stamped"])
    expected = {"ann": STAMPED, "bob": STAMPED, "cleo": ""}
    assert names(tenant, ids) == expected


@pytest.mark.parametrize("json_lines", [False, True], ids=["log", "json"])
@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
def test_an_unknown_user_does_not_stop_the_others(
    tenant: Tenant, run: Run, mode: str, json_lines: bool
) -> None:
    ids = {user: tenant.add_phone(user) for user in ("ann", "bob")}
    argv = [mode, "ann", "Nobody", "bob", *["--json"] * json_lines]
    result = run(*argv)
    assert result.status == 1
    stamped = STAMPED if mode == "--force" else ""
    assert names(tenant, ids) == {"ann": stamped, "bob": stamped}
    (line,) = result.err.splitlines()[:1]
    assert "Nobody" in line
    assert "ann" not in line
    if json_lines:
        unknown = [e for e in result.events if e["event"] == "unknown_user"]
        assert [each["user"] for each in unknown] == ["Nobody"]
        assert result.summary["unknown_user"] == 1


@pytest.mark.parametrize(
    ("asked", "unknown"),
    [
        (["Nobody", "NOBODY", "nobody"], ["Nobody", "NOBODY", "nobody"]),
        (["nobody", "ann", "Nobody"], ["nobody", "Nobody"]),
        (["nobody", "nobody"], ["nobody"]),
        (["ann", "ANN", "stra\u00dfe", "STRASSE"], ["stra\u00dfe", "STRASSE"]),
    ],
)
def test_each_spelling_of_a_name_is_answered_for(
    tenant: Tenant, run: Run, asked: list[str], unknown: list[str]
) -> None:
    tenant.add_user("Ann")
    result = run("--json", *asked)
    assert result.status == 1
    assert [each["user"] for each in result.events[:-1]] == unknown
    assert result.summary["unknown_user"] == len(unknown)
    assert result.summary["users_seen"] == any(name in asked for name in ("ann", "ANN"))
    told = [line.partition(" error: ")[2] for line in result.err.splitlines()]
    assert told[: len(unknown)] == [f"no such user in Duo: {name}" for name in unknown]


# Records with holes


@pytest.mark.parametrize("phones", [[], None, MISSING], ids=["none", "null", "missing"])
@pytest.mark.parametrize("argv", [[], ["cleo", "bob"]], ids=["all", "named"])
def test_users_without_phones(
    tenant: Tenant, run: Run, phones: Any, argv: list[str]
) -> None:
    tenant.add_user("cleo", phones=phones)
    phone_id = tenant.add_phone("bob")
    assert run(*argv).status == 0
    assert tenant.phones[phone_id]["name"] == STAMPED


@pytest.mark.parametrize(
    "phone_id",
    [
        *(MISSING, None, "", 12345, True, [], {}),
        *("../users/{user}", "..%2Fusers%2F{user}", "/admin/v1/users/{user}"),
        *("{phone}/", "{phone}?x=1", "{phone}#", "{phone}\n", "./{phone}", " ", "é"),
    ],
    ids=lambda value: "missing" if value is MISSING else repr(value),
)
@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
def test_a_phone_without_a_usable_id_is_named_and_left_alone(
    tenant: Tenant, run: Run, phone_id: Any, mode: str
) -> None:
    """Such an id is no reason to stop, and must not lead to another path."""
    target = tenant.add_user("target")
    other = tenant.add_phone("target", name="Mine")
    if isinstance(phone_id, str):
        phone_id = phone_id.format(user=target, phone=other)
    tenant.add_phone("ann", phone_id=phone_id, name=STUCK)
    healthy = tenant.add_phone("bob")
    result = run(mode)
    assert result.status == 1
    assert "ann" in result.err.splitlines()[0]
    assert tenant.phones[healthy]["name"] == (STAMPED if mode == "--force" else "")
    paths = {each.path for each in tenant.requests}
    assert paths <= {"/admin/v1/users", f"/admin/v1/phones/{healthy}"}


def test_an_odd_id_of_a_phone_in_use_is_no_concern(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("ann", phone_id=None, **SET_UP)
    result = run()
    assert (result.status, result.err) == (0, "")


# Shared phones


@pytest.mark.parametrize("argv", [[], ["bob"]], ids=["all", "one of them named"])
@pytest.mark.parametrize(("name", "event"), [("", "stamped"), (STUCK, "deleted")])
def test_a_shared_phone_comes_once_and_names_all(
    tenant: Tenant, run: Run, argv: list[str], name: str, event: str
) -> None:
    tenant.add_phone("ann", "bob", "cleo", name=name)
    result = run("-v", "--json", "--no-force", *argv, stdin="y\n")
    assert result.status == 0
    assert len(writes(tenant)) == 1
    lines = result.err.splitlines()
    prompts = [line for line in lines if "1 of 1" in line]
    actions = [line for line in lines if event in line and line not in prompts]
    for shown in (prompts[0], actions[0]):
        assert "ann, bob, cleo" in shown
    assert len(prompts) == 1
    last = result.events[-2]
    assert (last["event"], last["users"]) == (event, ["ann", "bob", "cleo"])


@pytest.mark.parametrize(
    ("argv", "users"),
    [([], "ann, bob, cleo"), (["bob"], "bob"), (["cleo", "ann"], "ann, cleo")],
    ids=["all", "one of them named", "two of them named"],
)
def test_a_dry_run_names_those_looked_at_who_share_a_phone(
    tenant: Tenant, run: Run, argv: list[str], users: str
) -> None:
    """It does not read the phone again, which would name the others, too."""
    tenant.add_phone("ann", "bob", "cleo", name=STUCK)
    result = run("--dry-run", *argv)
    (row,) = [x for x in result.out.splitlines() if "+15550000000" in x]
    assert row.startswith(f"{users}  ")
    assert [each.path for each in tenant.requests] == ["/admin/v1/users"]


# --untag


@pytest.mark.parametrize(
    ("argv", "stdin", "name"),
    [
        ("", "", STUCK),
        ("--no-untag", "", STUCK),
        ("--untag", "", ""),
        ("--untag --dry-run", "", STUCK),
        ("--untag --no-force", "n\n", STUCK),
        ("--untag --no-force", "y\n", ""),
    ],
)
def test_untag(tenant: Tenant, run: Run, argv: str, stdin: str, name: str) -> None:
    ids = {
        "finished": tenant.add_phone("ann", name=STUCK, **SET_UP),
        "named since": tenant.add_phone("bob", name="iPhone", **SET_UP),
        "still at it": tenant.add_phone("cleo", name=str(NOW)),
    }
    before = names(tenant, ids)
    assert run(*argv.split(), stdin=stdin).status == 0
    assert names(tenant, ids) == {**before, "finished": name}
    assert len(writes(tenant)) == (name == "")


# --max-deletions


@pytest.mark.parametrize(
    ("argv", "variables", "over"),
    [
        ("--max-deletions 2", {}, True),
        ("--max-deletions 1", {}, True),
        ("", {"DUO_MAX_DELETIONS": "2"}, True),
        ("--max-deletions 3", {}, False),
        ("--max-deletions 4", {}, False),
        ("--max-deletions none", {"DUO_MAX_DELETIONS": "2"}, False),
        ("", {}, False),
    ],
)
@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
def test_max_deletions(
    *,
    tenant: Tenant,
    run: Run,
    mode: str,
    argv: str,
    variables: dict[str, Any],
    over: bool,
) -> None:
    stuck = {str(n): tenant.add_phone(f"u{n}", name=STUCK) for n in range(3)}
    begun = tenant.add_phone("ann")
    result = run(mode, *argv.split(), **variables)
    assert result.status == over
    if mode == "--force":
        assert set(names(tenant, stuck).values()) == {STUCK if over else GONE}
        assert tenant.phones[begun]["name"] == STAMPED
    else:
        assert writes(tenant) == []
        assert result.out.count("delete: grace period over") == 3, "one can look at all"
    if over:
        (message,) = [line for line in result.err.splitlines() if "error:" in line]
        limit = argv[-1:] or "2"
        told = "error: 3 phones due for deletion, none deleted: --max-deletions"
        assert f"{told} (DUO_MAX_DELETIONS) is {limit}. " in message
        assert message.endswith("run once by hand with --max-deletions none")
        assert ("--dry-run" in message) is (mode == "--force")
    else:
        assert result.err == ""


@pytest.mark.parametrize("due", [99, 100, 101])
def test_a_limit_holds_unless_it_is_lifted(tenant: Tenant, run: Run, due: int) -> None:
    """100 by default. A dry run shows it: nothing has to be deleted for this."""
    for number in range(due):
        tenant.add_phone(f"u{number}", name=STUCK)
    result = run("--dry-run")
    assert result.status == (due > 100)
    assert result.out.splitlines()[0] == SCOPE
    assert ("(DUO_MAX_DELETIONS) is 100" in result.err) is (due > 100)
    assert run("--dry-run", "--max-deletions", "none").status == 0


@pytest.mark.parametrize("mode", ["--force", "--dry-run"])
@pytest.mark.parametrize("argv", [["--max-deletions", "0"], []], ids=["", "variable"])
def test_a_limit_of_zero_only_tags(
    tenant: Tenant, run: Run, argv: list[str], mode: str
) -> None:
    """It is what was asked for: no failure, and no advice."""
    variables: dict[str, Any] = {} if argv else {"DUO_MAX_DELETIONS": "0"}
    ids = add_situations(tenant)
    before = names(tenant, ids)
    result = run(mode, *argv, **variables)
    assert (result.status, result.err) == (0, "")
    if mode == "--force":
        assert result.out == ""
        assert names(tenant, ids) == {**before, "begun": STAMPED}
    else:
        first, _, *rows, totals = result.out.splitlines()
        assert first == "localhost: grace period 10 minutes, deletion limit 0"
        assert [row.split()[0] for row in rows] == ["begun", "young"]
        assert "delete" not in totals
        assert names(tenant, ids) == before
    (line, *_) = run(mode, "-v", *argv, **variables).err.splitlines()
    assert "1 phone due for deletion, none deleted: " in line
    assert line.endswith("--max-deletions (DUO_MAX_DELETIONS) is 0")
    assert "error" not in line


def test_the_limit_is_no_matter_when_there_is_nothing_to_delete(
    tenant: Tenant, run: Run
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=str(NOW - MINUTE))
    assert run("--max-deletions", "0").status == 0


# --dry-run


def test_the_table_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    ids = add_situations(tenant)
    ids["tablet"] = tenant.add_phone("gus", "fay", name=STUCK, number="")
    ids["future"] = tenant.add_phone("hal", name=str(NOW + HOUR))
    ids["again"] = tenant.add_phone("ida", name=STUCK, last_seen="2027-01-15T07:30:00")
    ids["finished"] = tenant.add_phone("jo", name=STUCK, **SET_UP)
    ids["odd"] = tenant.add_phone("kim", name=STUCK, last_seen="soon")
    ages = {"young": "9 minutes", "begun": "", "named": "", "future": ""}
    actions = {
        "begun": "stamp: not tagged yet",
        "stuck": "delete: grace period over",
        "young": "wait: 1 minute left",
        "named": 'keep: named "Dan\'s spare"',
        "tablet": "delete: grace period over",
        "future": "wait: its tag is in the future",
        "again": "stamp: in use since it was tagged",
        "finished": "untag: set up since it was tagged",
        "odd": "wait: its last_seen cannot be read",
    }
    users = {"tablet": "gus, fay", "future": "hal", "again": "ida"}
    users = {**users, "finished": "jo", "odd": "kim"}
    for argv, titles in (([], 4), (["-v"], 5)):
        result = run("--dry-run", "--no-force", "--untag", *argv)
        assert result.status == 0
        assert result.err == "" or argv
        first, head, *rows, totals = result.out.splitlines()
        assert first == SCOPE
        columns = [match.start() for match in re.finditer(r"\S+( \S+)*", head)]
        assert len(columns) == titles
        bounds = list(zip(columns, [*columns[1:], None]))
        table = [[row[a:b].strip() for a, b in bounds] for row in [head, *rows]]
        title = ["USERS", "NUMBER", "AGE", "A RUN WOULD", "PHONE ID"]
        assert table.pop(0) == title[:titles]
        for who, action in actions.items():
            if who == "named" and not argv:
                continue  # kept phones are only counted
            row = [
                users.get(who, who),
                tenant.phones[ids[who]]["number"] or "without number",
                ages.get(who, "1 hour"),
                action,
                ids[who],
            ]
            assert table.pop(0) == row[:titles]
        assert table == []
        assert re.fullmatch(
            r"11 users, 10 phones, 8 in limbo: 2 to stamp, 2 to delete, "
            r"1 to untag, 3 waiting, 1 kept; 1 request, \d+\.\d s",
            totals,
        )
    assert {request.method for request in tenant.requests} == {"GET"}


@pytest.mark.parametrize(
    ("argv", "scope"),
    [
        ("", "grace period 10 minutes, deletion limit 100"),
        ("-g 0", "grace period 0 minutes, deletion limit 100"),
        ("-g 1", "grace period 1 minute, deletion limit 100"),
        (
            "-g 1440 --max-deletions none",
            "grace period 1440 minutes, deletion limit none",
        ),
        ("--max-deletions 7", "grace period 10 minutes, deletion limit 7"),
        ("--max-deletions 1", "grace period 10 minutes, deletion limit 1"),
        ("bob Ann", "grace period 10 minutes, deletion limit 100"),
    ],
)
def test_a_dry_run_and_the_first_prompt_say_which_tenant_and_settings(
    tenant: Tenant, run: Run, argv: str, scope: str
) -> None:
    tenant.add_phone("ann")
    tenant.add_user("bob")
    first = run("--dry-run", *argv.split()).out.splitlines()[0]
    assert first == f"localhost: {scope}"
    lines = run("--no-force", *argv.split(), stdin="n\n").err.splitlines()
    assert lines[0] == first
    assert lines[1].startswith("1 of 1: ")


@pytest.mark.parametrize("argv", [["--no-force"], ["--force"], ["-n", "--json"]])
def test_else_nothing_is_said_of_the_settings(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    tenant.add_phone("ann", name="Ann's" if argv == ["--no-force"] else "")
    result = run(*argv)
    assert "grace period" not in result.out + result.err


@pytest.mark.parametrize("argv", [[], ["named", "done"]], ids=["all", "named"])
def test_an_empty_dry_run_has_no_table(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    tenant.add_phone("named", name="Dan's spare")
    tenant.add_phone("done", name="iPhone", **SET_UP)
    result = run("--dry-run", *argv)
    first, totals = result.out.splitlines()
    assert (result.status, result.err, first) == (0, "", SCOPE)
    assert totals.startswith("2 users, 2 phones, 1 in limbo: 1 kept; ")


def test_a_dry_run_says_what_the_run_then_does(tenant: Tenant, run: Run) -> None:
    add_situations(tenant)
    tenant.add_phone("jo", name=STUCK, **SET_UP)
    foretold = run("--dry-run", "--untag", "--json", "-v").events[:-1]
    assert writes(tenant) == []
    done = run("--untag", "--json", "-v").events[:-1]
    became = {
        "would_stamp": "stamped",
        "would_delete": "deleted",
        "would_untag": "untagged",
    }
    expected = [(became.get(e["event"], e["event"]), e["phone_id"]) for e in foretold]
    happened = [(e["event"], e["phone_id"]) for e in done if e["event"] != "deleting"]
    assert happened == expected
    assert len(happened) == 5


# One phone after the other


@pytest.mark.parametrize(
    ("argv", "ahead"),
    [("", True), ("ann bob cleo", True), ("--no-force", False)],
)
def test_the_next_phone_is_read_while_this_one_is_written(
    tenant: Tenant, run: Run, argv: str, ahead: bool
) -> None:
    """Where nothing is asked; and no further, and never two writes at a time."""
    ids = [tenant.add_phone(user, name=STUCK) for user in ("ann", "bob", "cleo")]
    told: list[str] = []

    def look(request: Request) -> None:
        if request.method == "DELETE":
            told.append(f"write {ids.index(request.path[-20:])}")
            if ids[1] in request.path:
                try:
                    tenant.wait_for(path=ids[2], timeout=5 if ahead else 0.3)
                    told.append("the next is read")
                except TimeoutError:
                    told.append("the next is not read")

    tenant.on_request(look)
    assert run(*argv.split(), stdin="y\ny\ny\n").status == 0
    reading = "the next is read" if ahead else "the next is not read"
    assert told == ["write 0", "write 1", reading, "write 2"]


# Pages


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, [0]),
        (299, [0]),
        (300, [0]),
        (301, [0, 300]),
        (600, [0, 300]),
        (1900, [*range(0, 1900, 300)]),
    ],
)
def test_pages(tenant: Tenant, run: Run, count: int, expected: list[int]) -> None:
    tenant.populate(max(0, count - 1))
    ids = {"last": tenant.add_phone("last")} if count else {}
    assert run().status == 0
    assert set(names(tenant, ids).values()) <= {STAMPED}
    assert sorted(offsets(tenant)) == expected
    listing = [r for r in tenant.requests if r.path.endswith("/users")]
    assert {each.params["limit"] for each in listing} == {"300"}


def test_a_listing_that_grows_is_read_to_its_end(tenant: Tenant, run: Run) -> None:
    tenant.populate(301)
    ids = {}

    def grow(request: Request) -> None:
        """The first two times that the last page is asked for, it no longer is."""
        offset = request.params.get("offset")
        if offset in ("300", "600") and offset not in ids:
            ids[offset] = ""
            tenant.populate(299)
            ids[offset] = tenant.add_phone(f"new at {offset}")

    tenant.on_request(grow)
    assert run().status == 0
    assert names(tenant, ids) == {"300": STAMPED, "600": STAMPED}
    assert sorted(offsets(tenant)) == [0, 300, 600, 900]


@pytest.mark.parametrize("left", [250, 650])
def test_a_listing_that_shrinks_is_read_to_its_end(
    tenant: Tenant, run: Run, left: int
) -> None:
    ids = {"first": tenant.add_phone("first")}
    tenant.populate(left - 2)
    ids["last"] = tenant.add_phone("last")
    tenant.populate(1500 - left)

    def shrink(request: Request) -> None:
        if request.params.get("offset", "0") != "0":
            with tenant.lock:
                for user in list(tenant.users)[left:]:
                    del tenant.users[user]

    tenant.on_request(shrink)
    assert run().status == 0
    assert set(names(tenant, ids).values()) == {STAMPED}
    assert len(set(offsets(tenant))) == len(offsets(tenant))


def serve_pages(tenant: Tenant, ids: list[str], metadata: list[Any]) -> None:
    """Answer with these pages, of one user each, and this about them.

    With the last of them also whatever is asked for at the same time or later.
    """
    for number, (phone_id, said) in enumerate(zip(ids, metadata), 1):
        user = {"username": f"u{number}", "phones": [tenant.phone(phone_id)]}
        fault = tenant.fail("answer", path="users", response=[user], metadata=said)
    fault.times = None


@pytest.mark.parametrize("total", [MISSING, None, 0, 1, "3"], ids="-n01s")
def test_a_listing_without_a_usable_length_is_read_to_its_end(
    tenant: Tenant, run: Run, total: Any
) -> None:
    ids = [tenant.add_phone(f"u{n}") for n in range(3)]
    length = {} if total is MISSING else {"total_objects": total}
    following: list[Any] = [{"next_offset": 1}, {"next_offset": 2}, {}]
    serve_pages(tenant, ids, [{**each, **length} for each in following])
    assert run().status == 0
    assert [tenant.phones[each]["name"] for each in ids] == [STAMPED] * 3
    assert offsets(tenant) == [0, 1, 2]


@pytest.mark.parametrize("following", [300, 299, 0, -1])
@pytest.mark.parametrize("length", [{}, {"total_objects": 9000}], ids=["", "length"])
def test_a_listing_that_does_not_go_on_ends_the_run(
    tenant: Tenant, run: Run, following: int, length: Record
) -> None:
    ids = [tenant.add_phone(f"u{n}") for n in range(2)]
    said = [{"next_offset": 300}, {"next_offset": following}]
    serve_pages(tenant, ids, [{**each, **length} for each in said])
    result = run()
    assert result.status == 1
    assert "listing" in result.err
    assert writes(tenant) == []
    assert len(set(offsets(tenant))) == len(offsets(tenant))


def test_at_most_four_pages_wait_for_a_slow_reader(tenant: Tenant, run: Run) -> None:
    """The time is asked for each phone: the reader is slow with the second page."""
    tenant.populate(3001)
    looked = threading.Event()

    def clock() -> float:
        if len(tenant.requests) > 1 and not looked.is_set():
            looked.set()
            tenant.wait_for(1 + 4, path="users", timeout=5)
            with pytest.raises(TimeoutError):
                tenant.wait_for(1 + 5, path="users", timeout=0.2)
        return NOW

    assert run(now=clock).status == 0
    assert looked.is_set()
    assert sorted(offsets(tenant)) == [*range(0, 3001, 300)]


def test_a_phone_listed_twice_for_one_user_is_told_once(
    tenant: Tenant, run: Run
) -> None:
    phone = tenant.add_phone("ann")
    (user,) = tenant.users.values()
    user["phones"] = [phone, phone]
    result = run("--json")
    assert [(each["event"], each["users"]) for each in result.events[:-1]] == [
        ("stamped", ["ann"])
    ]
