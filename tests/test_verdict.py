"""What the program does with a phone, by its record and the time alone."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from duo_phone_cleanup import FIRST_TAG, Verdict, verdict
from tests.simulation.tenant import MISSING, Record, Tenant
from tests.support import DAY, HOUR, MINUTE, NOW, SET_UP, STUCK, Run

GRACE = 10
DUE = NOW - GRACE * MINUTE
"""The youngest tag that is past the grace period."""

NUMBER = "+1 (555) 170-0000"
ZONES = {  # POSIX rules: they hold on a machine without a time zone database, too
    "UTC": "UTC0",
    "New York": "EST5EDT,M3.2.0,M11.1.0",
    "London": "GMT0BST,M3.5.0/1,M10.5.0",
    # by half an hour
    "Lord Howe": "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
    "Kathmandu": "<+0545>-5:45",
    "Kiritimati": "<+14>-14",
    "Baker Island": "<-12>12",
}


def limbo(**fields: Any) -> Record:
    """A limbo phone's record, as Duo gives it when the set-up has just begun."""
    record = {
        "activated": False,
        "last_seen": "",
        "name": "",
        "number": "+15550000000",
        "phone_id": "DPFZRS9FB0D46QFTM899",
        "platform": "Generic Smartphone",
        "type": "Mobile",
        **fields,
    }
    return {name: value for name, value in record.items() if value is not MISSING}


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def epoch(*date: int) -> int:
    """The seconds since the epoch of a date and time in UTC."""
    return int(datetime(*date, tzinfo=timezone.utc).timestamp())  # type: ignore[misc, arg-type]


@contextlib.contextmanager
def zone(name: str) -> Iterator[None]:
    """Be in another time zone."""
    before = os.environ.get("TZ")
    try:
        os.environ["TZ"] = ZONES[name]
        time.tzset()
        yield
    finally:
        del os.environ["TZ"]
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()


@pytest.fixture(params=ZONES)
def where(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every zone, or those that a test names."""
    with zone(request.param):
        yield request.param


def short(value: object) -> str:
    """A name for a case, the same in every process."""
    if value is MISSING:
        return "missing"
    return ascii(value)[:40]


# The table

OLD = {"name": STUCK}
TO_COME = {"name": str(NOW + 9)}

OTHER_PLATFORMS: list[Any] = [
    "Apple iOS",
    "Google Android",
    "Generic",
    "",
    "Generic Smartphone 2",
    "A Generic Smartphone",
    "Generic\u00a0Smartphone",
    "Generic \u017fmartphone",
    " Generic Smartphone",
    MISSING,
    None,
    7,
    ["Generic Smartphone"],
]
CASES: list[tuple[str, Record, Verdict | None]] = [
    ("just begun", {}, Verdict.STAMP),
    ("an hour ago", OLD, Verdict.DELETE),
    ("a second too young", {"name": str(DUE + 1)}, Verdict.WAIT),
    ("at the grace period", {"name": str(DUE)}, Verdict.DELETE),
    ("a second past it", {"name": str(DUE - 1)}, Verdict.DELETE),
    ("tagged now", {"name": str(NOW)}, Verdict.WAIT),
    ("tagged in the future", {"name": str(NOW + 1)}, Verdict.FUTURE),
    ("the first tag of all", {"name": "1704067200"}, Verdict.DELETE),
    ("a second before any tag", {"name": "1704067199"}, Verdict.NAMED),
    ("the last tag of all", {"name": "9999999999"}, Verdict.FUTURE),
    # whether it is a limbo phone: its platform
    ("lower case", {**OLD, "platform": "generic smartphone"}, Verdict.DELETE),
    ("capitals", {**OLD, "platform": "GENERIC SMARTPHONE"}, Verdict.DELETE),
    ("mixed case", {"platform": "gEnErIc sMaRtPhOnE"}, Verdict.STAMP),
    # and its activation
    ("activated missing", {**OLD, "activated": MISSING}, None),
    ("activated null", {**OLD, "activated": None}, None),
    ("activated missing, no name", {"activated": MISSING}, None),
    ("activated null, no name", {"activated": None}, None),
    ("set up, no name", SET_UP, None),
    ("set up, named", {**SET_UP, "name": "Ann's phone"}, None),
    ("set up, tagged", {**SET_UP, **OLD}, Verdict.UNTAG),
    ("activated, tagged", {"activated": True, **OLD}, Verdict.UNTAG),
    ("another platform, tagged", {"platform": "Unknown", **OLD}, None),
    ("no platform, tagged", {"platform": MISSING, **OLD}, None),
    ("set up, tagged now", {**SET_UP, "name": str(NOW)}, Verdict.UNTAG),
    ("set up, tagged a second from now", {**SET_UP, "name": str(NOW + 1)}, None),
    ("set up, tag to come", {**SET_UP, **TO_COME}, None),
    ("set up, named by another number", {**SET_UP, "name": "2125551234"}, None),
    ("set up, unreadable", {**SET_UP, **OLD, "last_seen": "junk"}, Verdict.UNTAG),
    # whether it was in use since it was tagged
    ("in use since", {**OLD, "last_seen": NOW - HOUR + 1}, Verdict.STAMP_AGAIN),
    ("in use now", {**OLD, "last_seen": NOW}, Verdict.STAMP_AGAIN),
    ("in use in the future", {**OLD, "last_seen": NOW + DAY}, Verdict.STAMP_AGAIN),
    ("in use 10**30", {**OLD, "last_seen": 10**30}, Verdict.STAMP_AGAIN),
    (
        "in use, still young",
        {"name": str(NOW - 9), "last_seen": NOW},
        Verdict.STAMP_AGAIN,
    ),
    ("in use, but named", {"name": "Ann", "last_seen": NOW}, Verdict.NAMED),
    ("in use, not tagged", {"last_seen": NOW}, Verdict.STAMP),
    ("in use, tag to come", {**TO_COME, "last_seen": NOW + 10}, Verdict.FUTURE),
    ("unreadable", {**OLD, "last_seen": "junk"}, Verdict.UNREADABLE),
    (
        "unreadable, still young",
        {"name": str(NOW - 9), "last_seen": "junk"},
        Verdict.UNREADABLE,
    ),
    ("unreadable, tag to come", {**TO_COME, "last_seen": "junk"}, Verdict.FUTURE),
    ("unreadable, not tagged", {"last_seen": "junk"}, Verdict.STAMP),
    ("unreadable, but named", {"name": "x", "last_seen": []}, Verdict.NAMED),
    ("unreadable, but set up", {**SET_UP, "last_seen": 0.5}, None),
]
for platform in OTHER_PLATFORMS:
    CASES.append((f"platform {short(platform)}", {"platform": platform}, None))
for activated in (True, "true", "false", "no", 1, 0.5, [False], {"at": None}):
    CASES.append((f"activated {short(activated)}", {"activated": activated}, None))
for name in (MISSING, None, "", " ", "\t\r\n", "\u2003\u00a0", "\x1c"):
    CASES.append((f"name {short(name)}", {"name": name}, Verdict.STAMP))
for seen in (MISSING, None, "", 0, -1, NOW - HOUR, NOW - HOUR - 1):
    CASES.append(
        (f"last_seen {short(seen)}", {**OLD, "last_seen": seen}, Verdict.DELETE)
    )

NAMES_OF_PEOPLE: list[Any] = [
    "iPhone 12",
    "Ann's phone",
    "0",
    "null",
    # numbers of other things: dates, asset tags, telephones
    "20240701",
    "2024-07-01T12:00:00Z",
    "0612345678",
    "0000000000",
    "1000012345",
    "1201234567",
    "1704067199",
    "123456789",
    "12345678901",
    "1799990000000",
    # what int() or float() takes
    " 1799990000",
    "+1799990000",
    "1_799_990_000",
    "1799990000\n",
    "1799990000\x00",
    "1799990000.0",
    "1.79999e9",
    "1799990e+3",
    "0x6B49D200",
    "1 799 990 000",
    "nan",
    "\u0661\u0667\u0669\u0669\u0669\u0669\u0660\u0660\u0660\u0660",  # Arabic
    "\u0967\u096d\u096f\u096f\u096f\u096f\u0966\u0966\u0966\u0966",  # Devanagari
    "\uff11\uff17\uff19\uff19\uff19\uff19\uff10\uff10\uff10\uff10",  # fullwidth
    "\U0001d7cf" * 10,  # mathematical
    "179999000\u0660",
    # long, hostile, unprintable
    "1" * 5000,
    "\x07\x1b[2J\x1b]0;title\x07",
    "\u202e1799990000",
    "\ufeff1799990000",
    "\ud800",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    # the phone's own number (NUMBER), however it is written
    "5551700000",
    "555-170-0000",
    "(555) 170-0000",
    "+1 (555) 170-0000",
    "15551700000",
    "1700000",
]
NOT_EVEN_TEXT: list[Any] = [
    NOW - HOUR,
    float(NOW - HOUR),
    False,
    True,
    1e400,
    {},
    [str(NOW - HOUR)],
    {"name": str(NOW - HOUR)},
]

UNREADABLE = [
    "junk",
    " ",
    "07/01/2027",
    "2027-13-01",
    "2027-02-29",
    "2027-01-15T25:00",
    "2027-01-15T12:00+99:00",
    "2027-01-15T12:00:00 Z",
    "9999-12-31T24:00",
    "\u0662\u0660\u0662\u0667-01-15",
    "\ud800",
    "2027-01-15T12:00:00\n",
    str(NOW),
    "9" * 5000,
    "1718100261415",  # milliseconds
    True,
    0.5,
    float(NOW - DAY),
    float("nan"),
    [],
]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_table(fields: Record, expected: Verdict | None) -> None:
    record = limbo(**fields)
    before = dict(record)
    assert verdict(record, NOW, GRACE) is expected
    assert record == before


def test_an_age_is_a_difference() -> None:
    """Even where the time is a multiple of the tag."""
    phone = limbo(name="1800000000")
    assert verdict(phone, 3_600_000_000, GRACE) is Verdict.DELETE


def test_the_table_has_every_verdict() -> None:
    """But LEFT, which the plan alone gives."""
    assert {case[2] for case in CASES} == {None, *Verdict} - {Verdict.LEFT}


@pytest.mark.parametrize("name", NAMES_OF_PEOPLE + NOT_EVEN_TEXT, ids=short)
def test_a_phone_whose_name_is_no_tag_is_kept(name: Any) -> None:
    for seen in ("", NOW, "junk"):
        phone = limbo(name=name, number=NUMBER, last_seen=seen)
        assert verdict(phone, NOW, GRACE) is Verdict.NAMED
        assert verdict({**phone, **SET_UP}, NOW, GRACE) is None


@pytest.mark.parametrize(
    "number",
    [
        NUMBER,
        "+15551700000",
        "5551700000",
        "555-170-0000",
        "1 555 170 00 00",
        "0015551700000",
        "tel:+1.555.170.0000",
        15551700000,
        5551700000,
    ],
)
def test_a_phones_own_number_is_no_tag_however_duo_writes_it(number: Any) -> None:
    name = "5551700000"  # in 2145
    later = int(name) + DAY
    assert verdict(limbo(name=name, number=number), later, GRACE) is Verdict.NAMED


@pytest.mark.parametrize(
    "number",
    ["+155517000001", "+1551700000", "", None, MISSING, 5, [], "tablet"],
    ids=short,
)
def test_another_number_leaves_a_tag_a_tag(number: Any) -> None:
    phone = limbo(name="5551700000", number=number)
    assert verdict(phone, 5551700000 + DAY, GRACE) is Verdict.DELETE


@pytest.mark.parametrize("seen", UNREADABLE, ids=short)
def test_a_last_seen_that_cannot_be_read_only_waits(seen: Any) -> None:
    assert verdict(limbo(**OLD, last_seen=seen), NOW, GRACE) is Verdict.UNREADABLE


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(
    ("seen", "moment"),
    [
        ("2027-01-15T08:00:00", (2027, 1, 15, 8)),
        ("2027-01-15T08:00:00Z", (2027, 1, 15, 8)),
        ("2027-01-15T08:00:00+00:00", (2027, 1, 15, 8)),
        ("2027-01-15T08:00:00-00:00", (2027, 1, 15, 8)),
        ("2027-01-15T13:45:00+05:45", (2027, 1, 15, 8)),
        ("2027-01-14T22:00:00-1000", (2027, 1, 15, 8)),
        ("2027-01-15T20+12", (2027, 1, 15, 8)),
        ("2027-01-15T08:00", (2027, 1, 15, 8)),
        ("20270115T080000Z", (2027, 1, 15, 8)),
        ("2027-01-15", (2027, 1, 15)),
        ("20270115", (2027, 1, 15)),
        ("2027-01-15T24:00", (2027, 1, 16)),
        ("2028-02-29T00:00", (2028, 2, 29)),
        # what is twice or never on New York's clocks, and on Lord Howe's
        ("2027-03-14T02:30:00", (2027, 3, 14, 2, 30)),
        ("2027-11-07T01:30:00", (2027, 11, 7, 1, 30)),
        ("2027-10-03T02:15:00", (2027, 10, 3, 2, 15)),
        ("2027-04-04T01:45:00", (2027, 4, 4, 1, 45)),
    ],
)
def test_last_seen_is_read_to_the_second(seen: str, moment: tuple[int, ...]) -> None:
    used = epoch(*moment)
    said = [
        verdict(limbo(name=str(tag), last_seen=seen), used + DAY, GRACE)
        for tag in (used - 1, used, used + 1)
    ]
    assert said == [Verdict.STAMP_AGAIN, Verdict.DELETE, Verdict.DELETE]


def test_a_fraction_of_a_second_after_the_tag_is_later() -> None:
    for digits in ("5", "000001", "999999"):
        seen = f"{utc(NOW - HOUR):%Y-%m-%dT%H:%M:%S}.{digits}"
        phone = limbo(**OLD, last_seen=seen)
        assert verdict(phone, NOW, GRACE) is Verdict.STAMP_AGAIN, seen


# Properties

# A busy machine is no failure.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DIGITS = frozenset("0123456789")
SECONDS = st.integers(1_000_000_000, 9_999_999_999)
GRACES = st.sampled_from([0, 1, 10, 20, 1440]) | st.integers(0, 10**9)
OFFSETS = st.sampled_from([0, 60, -300, 345, 630, 840, -720])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
LIKE_A_TAG = st.one_of(
    SECONDS.map(str),
    st.text("+0123456789_.e \n\u0660\u0661", min_size=8, max_size=12),
    st.sampled_from(["", None, *NAMES_OF_PEOPLE]),
)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """A limbo phone, or nearly: up to two of its fields hold anything, or nothing."""
    record = limbo(
        platform=draw(st.sampled_from(["Generic Smartphone", "generic smartphone"])),
        activated=draw(st.sampled_from([False, None, True])),
        name=draw(LIKE_A_TAG),
        number=draw(st.sampled_from([NUMBER, "", None]) | SECONDS.map(str)),
        last_seen=draw(st.sampled_from(["", None, *UNREADABLE]) | SECONDS),
    )
    for field in draw(st.sets(st.sampled_from(sorted(record)), max_size=2)):
        record[field] = draw(ANY_JSON | st.just(MISSING))
    return limbo(**record)


@st.composite
def spellings(draw: st.DrawFn, moment: datetime) -> Any:
    """One of the ways to write an instant that ISO 8601 and Duo's records have."""
    offset = timezone(timedelta(minutes=draw(OFFSETS)))
    local = moment.astimezone(draw(st.sampled_from([timezone.utc, offset])))
    dash, colon = draw(st.sampled_from([("-", ":"), ("", "")]))
    date = local.strftime(f"%Y{dash}%m{dash}%d")
    clock = f"%H{colon}%M{colon}%S"
    if local.second == local.microsecond == 0 and draw(st.booleans()):
        clock = f"%H{colon}%M"
    elif local.microsecond or draw(st.booleans()):
        clock += draw(st.sampled_from([".", ","])) + "%f"
    ends = [f"{local:%z}", f"{local:%z}"[:3] + colon + f"{local:%z}"[3:]]
    if local.utcoffset() == timedelta(0):
        ends += ["", "Z"]
    text = date + "T" + local.strftime(clock) + draw(st.sampled_from(ends))
    if moment.microsecond == 0 and draw(st.booleans()):
        return int(moment.timestamp())
    return text


@st.composite
def lives(draw: st.DrawFn) -> tuple[int, int, int, datetime | None]:
    """A tag, the time, a grace period in minutes, and when the phone was in use.

    They are close to each other, so that they meet often.
    """
    tag = draw(st.integers(FIRST_TAG, 4_000_000_000))
    grace = draw(st.sampled_from([0, 1, 10, 1440]))
    near = st.integers(-2, 2) | st.integers(-DAY, DAY)
    now = tag + draw(st.sampled_from([0, grace * MINUTE])) + draw(near)
    fraction = timedelta(microseconds=draw(st.sampled_from([0, 0, 1, 999_999])))
    seen = draw(st.none() | near.map(lambda delta: utc(tag + delta) + fraction))
    return tag, now, grace, seen


@PATIENT
@given(life=lives(), data=st.data(), where=st.sampled_from(sorted(ZONES)))
def test_deleted_if_past_the_grace_period_and_not_in_use_since(
    life: tuple[int, int, int, datetime | None], data: st.DataObject, where: str
) -> None:
    tag, now, grace, seen = life
    spelling = ""
    if seen is not None:
        spelling = data.draw(spellings(seen))
    with zone(where):
        said = verdict(limbo(name=str(tag), last_seen=spelling), now, grace)
    if tag > now:
        assert said is Verdict.FUTURE
    elif seen is not None and seen > utc(tag):
        assert said is Verdict.STAMP_AGAIN
    elif now - tag >= grace * MINUTE:
        assert said is Verdict.DELETE
    else:
        assert said is Verdict.WAIT


def digits_of(number: Any) -> str:
    """The digits of a telephone number, whatever it is."""
    return "".join(each for each in str(number) if each in DIGITS)


@PATIENT
@given(record=records(), now=SECONDS, grace=GRACES)
@example({"last_seen": "9999-12-31T24:00", **limbo(**OLD)}, NOW, GRACE)
def test_of_any_record_only_a_limbo_phone_with_an_old_tag_is_deleted(
    record: Record, now: int, grace: int
) -> None:
    said = verdict(record, now, grace)
    assert said is verdict(dict(record), now, grace)
    name: Any = record.get("name")
    platform = record.get("platform")
    limbo_phone = (
        isinstance(platform, str)
        and platform.lower() == "generic smartphone"
        and record.get("activated") is False
    )
    tag = (
        isinstance(name, str)
        and len(name) == 10
        and DIGITS.issuperset(name)
        and int(name) >= FIRST_TAG
        and not digits_of(record.get("number")).endswith(name)
    )
    assert limbo_phone is (said not in (None, Verdict.UNTAG))
    if said is Verdict.STAMP:
        assert name is None or not name.strip()
    elif said is Verdict.NAMED:
        assert name is not None
        assert not tag
    elif said is not None:
        assert tag
        assert (int(name) > now) is (said is Verdict.FUTURE)
    if said is Verdict.UNTAG:
        assert record["activated"] is True
    if said is Verdict.DELETE:
        assert int(name) <= now - grace * MINUTE
        seen = record.get("last_seen")
        assert seen in (None, "") or not isinstance(seen, int) or seen <= int(name)
    if said is Verdict.WAIT:
        assert int(name) > now - grace * MINUTE
    if said in (Verdict.STAMP_AGAIN, Verdict.UNREADABLE):
        assert record["last_seen"] not in (None, "")


# Through whole runs


def test_half_a_second_is_not_rounded_up(tenant: Tenant, run: Run) -> None:
    begun = tenant.add_phone("ann")
    tagged = tenant.add_phone("bob", name=str(DUE + 1))
    run(now=NOW + 0.99)
    assert tenant.phones[begun]["name"] == str(NOW)
    assert tagged in tenant.phones


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("where", ["New York", "Lord Howe"], indirect=True)
@pytest.mark.parametrize(
    "midnight",
    [
        pytest.param((2028, 2, 29), id="leap day begins"),
        pytest.param((2028, 3, 1), id="leap day ends"),
        pytest.param((2027, 1, 1), id="new year"),
        pytest.param((2027, 3, 14, 7), id="summer time begins in New York"),
        pytest.param((2027, 11, 7, 6), id="summer time ends in New York"),
        pytest.param((2027, 10, 2, 15, 30), id="summer time begins on Lord Howe"),
        pytest.param((2027, 4, 3, 15), id="summer time ends on Lord Howe"),
        pytest.param((2038, 1, 19, 3, 14, 8), id="32 bits end"),
    ],
)
def test_no_calendar_lengthens_or_shortens_the_grace_period(
    tenant: Tenant, run: Run, midnight: tuple[int, ...]
) -> None:
    began = epoch(*midnight) - 5 * MINUTE
    phone_id = tenant.add_phone("ann")
    assert run(now=began).status == 0
    assert tenant.phones[phone_id]["name"] == str(began)
    run(now=began + 10 * MINUTE - 1)
    assert phone_id in tenant.phones
    result = run("--json", now=began + 10 * MINUTE)
    assert result.kinds == ["deleting", "deleted"]
    assert result.events[0]["tagged"] == f"{utc(began):%Y-%m-%dT%H:%M:%S}Z"
    assert phone_id not in tenant.phones


def test_no_name_of_a_person_ends_a_run_or_is_changed(tenant: Tenant, run: Run) -> None:
    for name in NAMES_OF_PEOPLE + NOT_EVEN_TEXT:
        tenant.add_phone("ann", name=name, number=NUMBER)
    tenant.add_phone("zoe")
    before = {**tenant.phones}
    result = run("--json", "--untag", "-g", "0")
    assert (result.status, result.err) == (0, "")
    assert result.kinds == ["stamped"]
    assert [*tenant.phones] == [*before]
    assert [each["name"] for each in tenant.phones.values()][:-1] == (
        NAMES_OF_PEOPLE + NOT_EVEN_TEXT
    )


def test_a_phone_in_use_since_it_was_tagged_gets_a_fresh_grace_period(
    tenant: Tenant, run: Run
) -> None:
    seen = utc(NOW - MINUTE)
    phone_id = tenant.add_phone("ann", **OLD, last_seen=f"{seen:%Y-%m-%dT%H:%M:%S}")
    run()
    assert tenant.phones[phone_id]["name"] == str(NOW)
    run(now=NOW + 10 * MINUTE - 1)
    assert phone_id in tenant.phones
    run(now=NOW + 10 * MINUTE)
    assert phone_id not in tenant.phones
