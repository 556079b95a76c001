"""What a run looks at: the listing of users, named users, and their phones."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.simulation.tenant import MISSING, Record, Request, Tenant
from tests.support import (
    NOW,
    SET_UP,
    STAMPED,
    STUCK,
    Run,
    Write,
    each_write,
    error_line,
    names,
    phone_of,
    write_methods,
    writes,
    written_phones,
)


def offsets(tenant: Tenant) -> list[int]:
    """The pages of the user listing that were asked for."""
    listing = [each for each in tenant.requests if each.path.endswith("/users")]
    return [int(each.params["offset"]) for each in listing]


# The pages of the listing


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
    ids = {}
    if count:
        tenant.populate(count - 1)
        ids["last"] = tenant.add_phone("last")
    assert run().status == 0
    assert set(names(tenant, ids).values()) <= {STAMPED}
    assert sorted(offsets(tenant)) == expected
    listing = [r for r in tenant.requests if r.path.endswith("/users")]
    assert {each.params["limit"] for each in listing} == {"300"}


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize(
    "length",
    [
        pytest.param(lambda _: 299, id="one less"),
        pytest.param(lambda offset: min(300, 40 + offset), id="growing"),
        pytest.param(lambda offset: max(50, 300 - offset), id="shrinking"),
    ],
)
def test_pages_of_other_lengths_than_asked(
    tenant: Tenant, run: Run, length: Callable[[int], int], null: bool
) -> None:
    """Each user is seen once, wherever Duo chooses to go on."""
    tenant.populate(350)
    first = tenant.add_phone("ann")
    tenant.populate(350)
    last = tenant.add_phone("bob")
    tenant.last_offset_null = null

    def shorten(request: Request) -> None:
        if "offset" in request.params:
            offset = int(request.params["offset"])
            request.params["limit"] = str(length(offset))

    tenant.on_request(shorten)
    result = run("--json")
    assert (result.status, result.err) == (0, "")
    assert result.kinds == ["stamped", "stamped"]
    assert written_phones(tenant) == [first, last]
    assert result.summary["users_seen"] == 702
    assert result.summary["phones_seen"] == len(tenant.phones)


@pytest.mark.parametrize(
    "metadata",
    [MISSING, {}, {"next_offset": None}, {"total_objects": "1"}],
    ids=["none", "empty", "no next one", "total in text"],
)
@pytest.mark.parametrize("users", [(), ("ann",)])
def test_a_single_page_that_says_little_about_itself(
    tenant: Tenant, run: Run, metadata: Any, users: tuple[str, ...]
) -> None:
    phone = tenant.add_phone("ann", name=STUCK)
    (ann,) = tenant.users.values()
    page = [{**ann, "phones": [tenant.phone(phone)]}]
    tenant.fail("answer", path="users$", response=page, metadata=metadata)
    result = run("--json", *users)
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == [phone]


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


def test_a_page_that_turns_out_not_to_be_needed(tenant: Tenant, run: Run) -> None:
    """Most users go after the first page, so that it has named too many.

    Nobody waits for the pages asked for on that account, which say nothing and fail.
    """
    ids = [tenant.add_phone(f"u{number}", name=STUCK) for number in range(3)]
    tenant.populate(1497)
    asked = threading.Event()
    over = threading.Event()

    def shrink(request: Request) -> None:
        if request.params.get("offset") == "0":
            with tenant.lock:
                for user_id in [*tenant.users][600:]:
                    del tenant.users[user_id]

    def hold(request: Request) -> None:
        offset = int(request.params.get("offset", 0))
        if offset == 300:
            assert asked.wait(20)
        if offset >= 600:
            asked.set()
            over.wait(20)
            request.params["limit"] = "0"  # which is answered with 400

    tenant.after_request(shrink)
    tenant.on_request(hold)
    try:
        result = run("--json")
    finally:
        over.set()
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == ids
    assert result.summary["users_seen"] == 600
    assert offsets(tenant).count(600) == 1


def serve_pages(tenant: Tenant, metadata: list[Any]) -> None:
    """Answer with pages of one user each, and this about them.

    With the last of them also whatever is asked for at the same time or later.
    """
    for user, said in zip(tenant.users.values(), metadata):
        page = [{**user, "phones": [tenant.phone(each) for each in user["phones"]]}]
        fault = tenant.fail("answer", path="users", response=page, metadata=said)
    fault.times = None


@pytest.mark.parametrize(
    "length",
    [
        pytest.param({}, id="missing"),
        pytest.param({"total_objects": None}, id="null"),
        pytest.param({"total_objects": 0}, id="0"),
        pytest.param({"total_objects": "3"}, id="text"),
    ],
)
def test_a_listing_without_a_usable_length_is_read_to_its_end(
    tenant: Tenant, run: Run, length: Record
) -> None:
    ids = [tenant.add_phone(f"u{n}") for n in range(3)]
    following: list[Any] = [{"next_offset": 1}, {"next_offset": 2}, {}]
    serve_pages(tenant, [{**each, **length} for each in following])
    assert run().status == 0
    assert [tenant.phones[each]["name"] for each in ids] == [STAMPED] * 3
    assert offsets(tenant) == [0, 1, 2]


@pytest.mark.parametrize("following", [300, 299, -1])
@pytest.mark.parametrize("length", [{}, {"total_objects": 9000}], ids=["", "length"])
def test_a_listing_that_does_not_go_on_ends_the_run(
    tenant: Tenant, run: Run, following: int, length: Record
) -> None:
    tenant.add_phone("ann")
    tenant.add_phone("bob")
    said = [{"next_offset": 300}, {"next_offset": following}]
    serve_pages(tenant, [{**each, **length} for each in said])
    result = run()
    assert result.status == 1
    assert "listing" in result.err
    assert writes(tenant) == []
    assert len(set(offsets(tenant))) == len(offsets(tenant))


def test_a_listing_that_ends_too_early(tenant: Tenant, run: Run) -> None:
    """What was read before is counted."""
    tenant.populate(900)
    tenant.fail("end_early", path="users$", after=1, times=None)
    result = run("--json")
    error, _summary = result.err.splitlines()
    assert error.endswith(" error: Duo's user listing ends before its total")
    assert result.summary["users_seen"] == 300


ENDS = "error: Duo's user listing does not go on: next_offset"
GOES_ON = "error: Duo's user listing goes on after its total"


@pytest.mark.parametrize(
    ("page", "told"),
    [
        pytest.param("empty", ENDS, id="empty pages"),
        pytest.param("same", GOES_ON, id="the same page again and again"),
    ],
)
@pytest.mark.parametrize("users", [1, 300, 301])
def test_a_listing_that_never_ends(
    tenant: Tenant, run: Run, users: int, page: str, told: str
) -> None:
    tenant.add_phone("ann", name=STUCK)
    tenant.populate(users - 1)
    tenant.fail("endless", path="users$", page=page, times=50)  # that is enough
    result = run("--json")
    error, _summary = result.err.splitlines()
    assert error.endswith(told)
    assert (result.status, result.kinds) == (1, ["failed"])
    assert writes(tenant) == []
    assert len(tenant.requests) <= 4


def test_duos_own_404_of_the_listing_has_a_hint(tenant: Tenant, run: Run) -> None:
    """Its code is that of a phone that has gone; here it means another host."""
    tenant.add_phone("ann", name=STUCK)
    tenant.fail("status", path="users$", status=404, code=40401)
    hint = "check --host (DUO_HOST) and HTTPS_PROXY"
    line = error_line(run())
    assert line.endswith(f" error: Duo answers 404 Resource not found: {hint}")
    assert len(tenant.requests) == 1


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
    lookups = [each for each in tenant.requests if each.path.endswith("/users")]
    looked_up = [json.loads(each.params["username_list"]) for each in lookups]
    assert [len(each) for each in looked_up] == [100, 100, 51]


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
    dan = tenant.add_user("Dan")
    tenant.users[dan]["aliases"] = None
    ids = {user: tenant.add_phone(user) for user in ("ann", "bob", "cleo", "dan")}
    result = run("-v", "--json", *asked, "dan")
    assert (result.status, result.kinds) == (0, ["stamped"] * 3)
    expected = {"ann": STAMPED, "bob": STAMPED, "cleo": "", "dan": STAMPED}
    assert names(tenant, ids) == expected


def test_an_unknown_user_does_not_stop_the_others(tenant: Tenant, run: Run) -> None:
    ids = {"ann": tenant.add_phone("ann"), "bob": tenant.add_phone("bob")}
    result = run("--json", "ann", "Nobody", "bob")
    assert result.status == 1
    assert names(tenant, ids) == {"ann": STAMPED, "bob": STAMPED}
    error, _summary = result.err.splitlines()
    assert error.endswith(" error: no such user in Duo: Nobody")
    unknown = [each["user"] for each in result.events[:-1] if "user" in each]
    assert unknown == ["Nobody"]
    assert result.summary["unknown_user"] == 1


def test_an_unknown_user_who_is_named_twice_is_told_of_once(
    tenant: Tenant, run: Run
) -> None:
    """Duo takes names that differ in case for one."""
    tenant.add_user("Ann")
    result = run("--json", "nobody", "ann", "Nobody", "ANN")
    assert (result.status, result.kinds) == (1, ["unknown_user"])
    assert result.summary["users_seen"] == 1


def test_an_empty_user_name_is_an_unknown_user(tenant: Tenant, run: Run) -> None:
    """It stands for nobody: not for everybody, nor for a user without a name."""
    ids = {user: tenant.add_phone(user) for user in ("ann", "bob", "")}
    result = run("--json", "ann", "")
    assert (result.status, result.kinds) == (1, ["unknown_user", "stamped"])
    assert names(tenant, ids) == {"ann": STAMPED, "bob": "", "": ""}


@pytest.mark.parametrize("name", ["ann", "ANN", "a.miller"])
def test_a_server_that_ignores_the_question(
    tenant: Tenant, run: Run, name: str
) -> None:
    """It answers with everybody, a page of them: only those asked for are looked at."""
    tenant.add_user("ann", aliases=["A.Miller"])
    ids = [tenant.add_phone(user, name=STUCK) for user in ("bob", "ann", "cleo")]
    tenant.populate(400)
    fault = tenant.fail("ignore_names", path="users$", times=None)
    result = run("--json", name)
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == [ids[1]]
    assert (result.summary["users_seen"], result.summary["limbo"]) == (1, 1)
    assert fault.hits == 1


def test_a_look_up_may_count_all_users(tenant: Tenant, run: Run) -> None:
    """Its total is no number of users to come."""
    tenant.look_up_counts_all = True
    tenant.populate(400)
    phone = tenant.add_phone("ann", name=STUCK)
    tenant.add_user("bob")
    result = run("--json", "ann", "bob")
    assert (result.status, result.err) == (0, "")
    assert written_phones(tenant) == [phone]
    assert result.summary["users_seen"] == 2


def phones_read(tenant: Tenant) -> list[str]:
    """The ids of the phones that were read by themselves."""
    read = [each for each in tenant.requests if each.method == "GET"]
    return [phone_of(each) for each in read if phone_of(each)]


def test_each_phone_of_named_users_is_read_once_to_know_who_shares_it(
    tenant: Tenant, run: Run
) -> None:
    """Not one that is in use, nor one of other users."""
    shared = tenant.add_phone("ann", "bob", "cleo", name=STUCK)
    kept = tenant.add_phone("ann", "dan", name="Ann's spare")
    young = tenant.add_phone("bob", name=STAMPED)
    tenant.add_phone("ann", **SET_UP)
    tenant.add_phone("eve", name=STUCK)
    result = run("--json", "--dry-run", "ann", "bob")
    assert (result.status, result.err) == (0, "")
    told = {each["phone_id"]: each["users"] for each in result.events[:-1]}
    assert told == {
        shared: ["ann", "bob", "cleo"],
        kept: ["ann", "dan"],
        young: ["bob"],
    }
    assert phones_read(tenant) == [shared, kept, young]


def test_no_phone_is_read_in_a_dry_run_of_all_users(tenant: Tenant, run: Run) -> None:
    """The listing has shown all who share it."""
    tenant.add_phone("ann", "bob", name=STUCK)
    assert run("--dry-run").status == 0
    assert phones_read(tenant) == []


def test_a_named_users_phone_whose_sharers_cannot_be_read(
    tenant: Tenant, run: Run
) -> None:
    """Then the deletions cannot be counted, and nothing is written."""
    tenant.add_phone("ann", name=STUCK)
    phone = tenant.add_phone("ann", name=STUCK)
    fault = tenant.fail("status", path=phone, times=None)
    result = run("--json", "ann")
    assert (result.status, result.kinds) == (1, ["failed"])
    assert "503 Service Unavailable" in result.err
    assert fault.hits == 3
    assert writes(tenant) == []


# Shared phones


@pytest.mark.parametrize("users", [(), ("ann", "user000002", "BOB")])
@each_write
def test_a_shared_phone_once(
    tenant: Tenant, run: Run, write: Write, users: tuple[str, ...]
) -> None:
    """However many users share it, on whatever pages they are."""
    tenant.add_user("ann")
    tenant.populate(300)
    phone_id = tenant.add_phone("ann", "user000002", "bob", **write.fields)
    result = run("--json", "--untag", *users)
    assert result.status == 0
    assert write_methods(tenant) == [write.method]
    told = result.events[-2]
    assert (told["event"], told["phone_id"]) == (write.event, phone_id)
    assert told["users"] == ["ann", "user000002", "bob"]
    assert result.summary[write.event] == 1
    if write.name == "untag":
        assert result.summary["limbo"] == 0
    else:
        assert result.summary["limbo"] == 1


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


# Records with holes


@pytest.mark.parametrize("entry", [None, 7, "DPX", [], [{}]], ids=repr)
def test_a_phone_that_is_no_object(tenant: Tenant, run: Run, entry: Any) -> None:
    """It ends the walk, as phones do that are no list, and nothing is written."""
    phone_id = tenant.add_phone("bob", name=STUCK)
    phones = [entry, tenant.phone(phone_id)]
    users = [{"username": "ann", "phones": phones}]
    tenant.fail("answer", path="users$", response=users)
    result = run("--json")
    error_line(result, "error: Duo gives user ann phones that are no records")
    assert (result.status, result.kinds) == (1, ["failed"])
    assert tenant.phone(phone_id)
    assert len(tenant.requests) == 1


def shown(value: object) -> str:
    """What a case is called."""
    if value is MISSING:
        return "missing"
    return repr(value)


@pytest.mark.parametrize(
    "phone_id",
    [
        MISSING,
        None,
        "",
        12345,
        [],
        ".",
        "DP/../X",
        "DP X",
        "DP%2e",
        "DP\u00e9",
        "../users/{user}",
        "{phone}?x=1",
        "{phone}\n",
        "./{phone}",
    ],
    ids=shown,
)
def test_a_phone_without_a_usable_id_is_named_and_left_alone(
    tenant: Tenant, run: Run, phone_id: Any
) -> None:
    """Such an id is no reason to stop, and must not lead to another path."""
    target = tenant.add_user("target")
    other = tenant.add_phone("target", name="Mine")
    if isinstance(phone_id, str):
        phone_id = phone_id.format(user=target, phone=other)
    tenant.add_phone("ann", phone_id=phone_id, name=STUCK)
    healthy = tenant.add_phone("bob")
    result = run()
    assert result.status == 1
    told = "error: user ann has a phone without a usable phone_id"
    assert result.err.splitlines()[0].endswith(told)
    assert tenant.phones[healthy]["name"] == STAMPED
    paths = {each.path for each in tenant.requests}
    assert paths == {"/admin/v1/users", f"/admin/v1/phones/{healthy}"}


def test_an_odd_id_of_a_phone_in_use_is_no_concern(tenant: Tenant, run: Run) -> None:
    tenant.add_phone("ann", phone_id=None, **SET_UP)
    result = run()
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("odd", [None, 7, True, "", [], {}, {"a": 1}], ids=repr)
def test_fields_of_odd_types_do_no_harm(tenant: Tenant, run: Run, odd: Any) -> None:
    """The verdict needs a platform and a name; the rest is only shown."""
    fields = ("number", "model", "type", "extension", "capabilities")
    phone_id = tenant.add_phone("ann", name=STUCK, **dict.fromkeys(fields, odd))
    strange = [
        tenant.add_phone("ann", name=STUCK, platform=odd),
        tenant.add_phone("ann", name={"a": odd}),
    ]
    (ann,) = tenant.users.values()
    ann.update(dict.fromkeys(("username", "user_id", "aliases", "alias1"), odd))
    ann.update(dict.fromkeys(("email", "groups", "last_login"), odd))
    tenant.add_user("bob", phones=None)
    tenant.add_user("cleo", phones=MISSING)
    result = run("--json", "-v")
    assert (result.status, result.kinds) == (0, ["named", "deleting", "deleted"])
    assert tenant.phone(phone_id) is None
    assert all(tenant.phone(each) for each in strange)
    assert not re.search("Traceback|Error", result.err)


@pytest.mark.parametrize(
    "users", [MISSING, None, 7, "ann", {}, [None], ["ann"], [[]]], ids=shown
)
@each_write
def test_a_phone_that_does_not_tell_whose_it_is_is_left_alone(
    tenant: Tenant, run: Run, write: Write, users: Any
) -> None:
    """It may be somebody else's by now. The others are done."""
    odd = tenant.add_phone("ann", **write.fields)
    good = tenant.add_phone("bob", **write.fields)
    record = {**tenant.phones[odd], "users": users}
    if users is MISSING:
        del record["users"]
    tenant.fail("answer", path=f"phones/{odd}", response=record, times=None)
    result = run("--json", "--untag")
    assert (result.status, result.outcomes) == (1, ["failed", write.event])
    assert "Duo does not say whose phone this is" in result.err
    assert written_phones(tenant) == [good]
