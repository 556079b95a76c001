"""Whole runs, as an administrator would think of them."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import HOUR, MINUTE, NOW, Run
from tests.tenant import MISSING, Record, Request, Tenant

GONE = "(deleted)"
STAMPED = str(NOW)
STUCK = str(NOW - HOUR)
"""A tag past its grace period."""
SET_UP = {"activated": True, "platform": "Apple iOS"}
CAST: dict[str, Record] = {
    "begun": {},
    "stuck": {"name": STUCK},
    "young": {"name": str(NOW - 9 * MINUTE)},
    "named": {"name": "Dan's spare"},
    "done": {"name": "iPhone", **SET_UP},
}
"""A user in each of the situations that the program is about."""


def add_cast(tenant: Tenant) -> dict[str, str]:
    """Add the cast, one phone each; give the phones' ids."""
    return {user: tenant.add_phone(user, **fields) for user, fields in CAST.items()}


def names(tenant: Tenant, ids: dict[str, str]) -> dict[str, Any]:
    """What the phones are called now."""
    return {
        who: (tenant.phone(key) or {"name": GONE})["name"] for who, key in ids.items()
    }


def writes(tenant: Tenant) -> list[Request]:
    return [request for request in tenant.requests if request.method != "GET"]


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
    ids = add_cast(tenant)
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


@pytest.mark.parametrize("argv", [[], ["bob"]], ids=["all", "one of them named"])
def test_the_rehearsal_names_all_who_share_a_phone(
    tenant: Tenant, run: Run, argv: list[str]
) -> None:
    phone_id = tenant.add_phone("ann", "bob", "cleo", name=STUCK)
    (row,) = [x for x in run("--dry-run", *argv).out.splitlines() if phone_id in x]
    assert "ann, bob, cleo" in row


@pytest.mark.parametrize(
    "change", [SET_UP, {"name": "Ann's"}, {"name": STAMPED}, None], ids=repr
)
def test_a_rehearsal_for_named_users_survives_a_change(
    tenant: Tenant, run: Run, change: Record | None
) -> None:
    """It reads each phone again, for the names of all users: what changed is told."""
    changing = tenant.add_phone("ann", name=STUCK)
    begun = tenant.add_phone("bob")

    def meddle(request: Request) -> None:
        if request.path.endswith("/users") or changing not in tenant.phones:
            return
        with tenant.lock:
            if change is None:
                del tenant.phones[changing]
            else:
                tenant.phones[changing].update(change)

    tenant.on_request(meddle)
    result = run("--dry-run", "ann", "bob")
    assert (result.status, result.err) == (0, "")
    assert "would stamp 1" in result.out
    assert [row for row in result.out.splitlines() if begun in row and "stamp" in row]
    assert changing not in result.out


def test_a_rehearsal_for_named_users_goes_on_after_a_failure(
    tenant: Tenant, run: Run
) -> None:
    failing, healthy = tenant.add_phone("ann"), tenant.add_phone("bob")
    tenant.fail("status", status=400, path=failing, times=None)
    result = run("--dry-run", "ann", "bob")
    assert result.status == 1
    assert failing in result.err
    assert failing not in result.out
    assert healthy in result.out


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
        ("--max-deletions 0", {}, True),
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
    if over:
        message = result.err.splitlines()[0]
        for expected in (": 3, ", "--dry-run", "--max-deletions none"):
            assert expected in message
    else:
        assert result.err == ""


def test_the_limit_is_no_matter_when_there_is_nothing_to_delete(
    tenant: Tenant, run: Run
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob", name=str(NOW - MINUTE))
    assert run("--max-deletions", "0").status == 0


# --dry-run


@pytest.fixture
def half_past() -> Iterator[None]:
    """A local time half an hour, and five hours, ahead of UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XST-5:30")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("half_past")
def test_the_table_of_a_dry_run(tenant: Tenant, run: Run) -> None:
    ids = add_cast(tenant)
    ids["tablet"] = tenant.add_phone("gus", "fay", name=STUCK, number="")
    ids["future"] = tenant.add_phone("hal", name=str(NOW + HOUR))
    ids["again"] = tenant.add_phone("ida", name=STUCK, last_seen="2027-01-15T07:30:00")
    ids["finished"] = tenant.add_phone("jo", name=STUCK, **SET_UP)
    result = run("--dry-run", "--no-force", "--untag")
    assert (result.status, result.err) == (0, "")
    assert {request.method for request in tenant.requests} == {"GET"}

    head, *rows = result.out.splitlines()
    columns = [match.start() for match in re.finditer(r"\S+( \S+)*", head)]
    assert len(columns) == 6
    bounds = list(zip(columns, [*columns[1:], None]))
    table = [[row[a:b].strip() for a, b in bounds] for row in rows]
    tagged = {"stuck": ("2027-01-15 12:30", "1 hour")}  # 07:30 in UTC
    for user in ("tablet", "again", "finished"):
        tagged[user] = tagged["stuck"]
    tagged["young"] = ("2027-01-15 13:21", "9 minutes")
    tagged["future"] = ("2027-01-15 14:30", "")
    actions = {
        "begun": "stamp",
        "stuck": "delete",
        "young": "wait",
        "named": 'leave alone: named "Dan\'s spare"',
        "tablet": "delete",
        "future": "wait",
        "again": "stamp",
        "finished": "untag",
    }
    users = {"tablet": "gus, fay", "future": "hal", "again": "ida", "finished": "jo"}
    for who, action in actions.items():
        user, number, phone_id, first_seen, age, would = table.pop(0)
        assert user == users.get(who, who)
        assert number == (tenant.phones[ids[who]]["number"] or "tablet")
        assert phone_id == ids[who]
        assert (first_seen, age) == tagged.get(who, ("", ""))
        assert would.startswith(action)
        assert ":" in would, "and why"
    assert len(table) == 1
    for total in ("users seen 10", "would stamp 2", "would delete 2", "waiting 2"):
        assert total in rows[-1]


def test_an_empty_rehearsal_says_so(tenant: Tenant, run: Run) -> None:
    tenant.populate(7)
    result = run("--dry-run")
    first, totals = result.out.splitlines()
    assert (result.status, result.err, first) == (0, "", "No limbo phones.")
    assert "users seen 7" in totals


def test_a_rehearsal_says_what_the_run_then_does(tenant: Tenant, run: Run) -> None:
    add_cast(tenant)
    tenant.add_phone("jo", name=STUCK, **SET_UP)
    rehearsed = run("--dry-run", "--untag", "--json", "-v").events[:-1]
    assert writes(tenant) == []
    done = run("--untag", "--json", "-v").events[:-1]
    became = {
        "would_stamp": "stamped",
        "would_delete": "deleted",
        "would_untag": "untagged",
    }
    expected = [(became.get(e["event"], e["event"]), e["phone_id"]) for e in rehearsed]
    happened = [(e["event"], e["phone_id"]) for e in done if e["event"] != "deleting"]
    assert happened == expected
    assert len(happened) == 5


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
    tenant.add_phone("first")  # the time is asked for it, while its page is read
    tenant.populate(3000)
    looked = threading.Event()

    def clock() -> float:
        if tenant.requests and not looked.is_set():
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
