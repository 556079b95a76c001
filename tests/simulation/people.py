"""What people do to their phones in a simulated year, and what is true of these.

The tenant has the records that the program sees. Here is what they mean: who began or
finished a set-up, who gave a phone its name. The judgment is by this alone.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from tests.simulation.tenant import MISSING, Record, Tenant

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR
USERS = [f"user{number}" for number in range(15)]
FEW_PHONES = 6
MANY_PHONES = 20
GENERIC = ("Generic Smartphone", "generic smartphone", "GENERIC SMARTPHONE")
BLANK = ("", "", "", None, MISSING, " ", "\t")
NAMES = (
    "Ann's phone",
    "iPhone 12",
    "📱",
    "-",
    "0",
    "null",
    "\x1b[31m\n",
    "9" * 40,
    "104233",
    "20240701",
    "0612345678",
    "1000012345",
    "1201234567",
    "1704067199",
    "170000000",
    "17000000000",
    "1_700_000_000",
    " 1700000000",
    "1700000000\n",
    "+1700000000",
    "1700000000.0",
    "1.7e9",
    "１７００００００００",  # noqa: RUF001
    "١٧٠٠٠٠٠٠٠٠",  # noqa: RUF001
    "DO NOT DELETE 1700000000",
    "2125551234",
    "4155550123",
    "9876543210",
)
"""What people call a phone: none of it was written by a run. The last ones are other
phone numbers, which read as times to come."""
NOT_LIMBO = (
    *[(True, "Apple iOS"), (True, "Google Android")] * 2,
    (True, None),
    (True, GENERIC[0]),
    (True, GENERIC[1]),
    (False, "Unknown"),
    (None, GENERIC[0]),
    (MISSING, GENERIC[1]),
    (0, GENERIC[2]),
    (1, "Apple iOS"),
    (MISSING, "Apple iOS"),
)
"""What is in the record of a phone once it is set up, or is one for calls only; or does
not say whether it is activated, as were Duo to drop the field."""
GARBLED: list[Any] = ["yesterday", "2025-13-01", [], True, 1.5]
"""A last_seen that nobody can read."""


@dataclass
class Clock:
    """The time of a year, in seconds. Nobody sets it."""

    now: float  # since the epoch, as everybody's watch shows it
    slept: float = 0  # how much of it the machine has slept
    paused: float = 0  # how long runs have paused while no watch went on

    def boot(self) -> float:
        """What CLOCK_BOOTTIME shows."""
        return self.now + self.paused

    def monotonic(self) -> float:
        """What CLOCK_MONOTONIC shows, which stands still while the machine sleeps."""
        return self.boot() - self.slept


@dataclass
class Phone:
    """What is true of a phone, whatever form its record gives to that."""

    limbo: bool = True
    activated: bool = False
    tag: int | None = None  # its name, if a run wrote it
    named: bool = False  # a person wrote its name
    used: int | None = None
    readable: bool = True  # its last_seen says so in a way that can be read

    def due(self, now: float, grace_period: int) -> str | None:
        """Return the one thing that a run may do to it: this is the promise."""
        if self.tag is not None and self.tag > now:
            return None
        if self.activated and self.tag is not None:
            return "untagged"
        if not self.limbo or self.named:
            return None
        if self.tag is None:
            return "stamped"
        if not self.readable:
            return None
        if self.used is not None and self.used > self.tag:
            return "stamped"
        if now - self.tag >= grace_period * MINUTE:
            return "deleted"
        return None


def owners_of(record: Record) -> set[str]:
    """Return the names of the users of a phone, whose record has theirs in it."""
    return {user["username"] for user in record["users"]}


class People:
    """The users and administrators of a tenant."""

    def __init__(
        self,
        tenant: Tenant,
        chance: random.Random,
        clock: Clock,
        story: deque[str],
        did: Callable[[str, str], None],
    ) -> None:
        """Nobody has done anything yet. `did` is told of what a run might have done."""
        self.tenant = tenant
        self.random = chance
        self.clock = clock
        self.story = story
        self.did = did
        self.phones: dict[str, Phone] = {}

    def happen(self, phone_id: str = "") -> None:
        """Let somebody do something, to this phone or to any."""
        if phone_id not in self.phones:
            phone_id = self.random.choice([*self.phones, ""])
        if not phone_id or len(self.phones) < FEW_PHONES:
            self.begin()
            return
        removal = 1
        if len(self.phones) >= MANY_PHONES:
            removal = 20
        deeds: dict[Callable[[str], object], int] = {
            self.finish: 6,
            self.use: 4,
            self.restart: 3,
            self.name: 4,
            self.unname: 2,
            self.share: 2,
            self.leave: 2,
            self.move: 2,
            self.log_in: 1,
            self.garble: 1,
            self.remove: removal,
        }
        (deed,) = self.random.choices([*deeds], [*deeds.values()])
        deed(phone_id)

    def tell(self, phone_id: str, text: str) -> None:
        """Add to the story."""
        self.story.append(f"    {phone_id}: {text}")

    def change(self, phone_id: str, **fields: Any) -> Phone:
        """Change the record of a phone; return what is true of it, to be changed."""
        shown = {}
        for key, value in fields.items():
            shown[key] = value
            if value is MISSING:
                shown[key] = "missing"
        self.tell(phone_id, str(shown))
        with self.tenant.lock:
            record = {**self.tenant.phones[phone_id], **fields}
            kept = {key: value for key, value in record.items() if value is not MISSING}
            self.tenant.phones[phone_id] = kept
        return self.phones[phone_id]

    def owners(self, phone_id: str) -> list[str]:
        """Return the names of a phone's users."""
        with self.tenant.lock:
            users = self.tenant.phones[phone_id]["users"]
            return [self.tenant.users[user_id]["username"] for user_id in users]

    # What they do

    def limbo(self) -> Record:
        """Return what a record has that is in limbo."""
        return {"platform": self.random.choice(GENERIC), "activated": False}

    def begin(self) -> None:
        fields = self.limbo()
        if self.random.random() < 0.5:  # a tablet
            fields["number"] = self.random.choice(("", None, MISSING))
        fields["name"] = self.random.choice(BLANK)
        user = self.random.choice(USERS)
        phone_id = self.tenant.add_phone(user, **fields)
        self.phones[phone_id] = Phone()
        self.tell(phone_id, f"begun by {user}")

    def restart(self, phone_id: str) -> None:
        phone = self.change(phone_id, **self.limbo())
        phone.limbo = True
        phone.activated = False

    def finish(self, phone_id: str) -> None:
        """Somebody sets it up, or it turns out to be no such phone."""
        activated, platform = self.random.choice(NOT_LIMBO)
        phone = self.change(phone_id, activated=activated, platform=platform)
        phone.limbo = False
        phone.activated = activated is True
        self.use(phone_id)

    def use(self, phone_id: str) -> None:
        now = int(self.clock.now)
        seen = datetime.fromtimestamp(now, timezone.utc)
        plain = seen.strftime("%Y-%m-%dT%H:%M:%S")
        elsewhere = seen.astimezone(timezone(timedelta(hours=5, minutes=45)))
        forms = (plain, plain, plain + "Z", elsewhere.isoformat(), now)
        phone = self.change(phone_id, last_seen=self.random.choice(forms))
        phone.used = now
        phone.readable = True

    def garble(self, phone_id: str) -> None:
        last_seen = self.random.choice(GARBLED)
        self.change(phone_id, last_seen=last_seen).readable = False

    def name(self, phone_id: str) -> None:
        """Somebody gives it a name: often its own number, or the ten digits of it."""
        number = self.tenant.phones[phone_id].get("number") or "spare"
        own = (number, number[-10:], number[-10:], number[-10:])
        self.call(phone_id, self.random.choice(NAMES + own))

    def call(self, phone_id: str, name: str) -> None:
        phone = self.change(phone_id, name=name)
        phone.named = True
        phone.tag = None

    def unname(self, phone_id: str) -> None:
        phone = self.change(phone_id, name=self.random.choice(BLANK))
        phone.named = False
        phone.tag = None
        self.did("untagged", phone_id)

    def share(self, phone_id: str) -> None:
        """One more user has it, or it is the phone of a whole team."""
        owners = self.owners(phone_id)
        for user in self.random.sample(USERS, self.random.choice((1, 1, 1, 4, 10))):
            if user not in owners:
                owners.append(user)
        self.give(phone_id, owners)

    def leave(self, phone_id: str) -> None:
        """One of those who share it does so no longer."""
        owners = self.owners(phone_id)
        if len(owners) > 1:
            owners.remove(self.random.choice(owners))
        self.give(phone_id, owners)

    def move(self, phone_id: str) -> None:
        """It becomes somebody else's, although one of those may keep it who had it."""
        owners = self.random.sample(USERS, self.random.choice((1, 1, 2)))
        if self.random.random() < 0.3:
            kept = self.owners(phone_id)[0]
            if kept not in owners:
                owners.append(kept)
        self.give(phone_id, owners)

    def give(self, phone_id: str, owners: list[str]) -> None:
        self.tenant.move_phone(phone_id, *owners)
        self.tell(phone_id, f"of {owners}")

    def log_in(self, phone_id: str) -> None:
        """One of its users logs in: with another phone, or by a text."""
        user = self.random.choice(self.owners(phone_id))
        self.tenant.change_user(user, last_login=int(self.clock.now))
        self.tell(phone_id, f"{user} logs in")

    def remove(self, phone_id: str) -> None:
        with self.tenant.lock:
            del self.tenant.phones[phone_id]
            del self.phones[phone_id]
        self.did("deleted", phone_id)
        self.tell(phone_id, "deleted by a person")

    # What a run does

    def written(self, phone_id: str, deed: str, name: str) -> None:
        """Take note of a write that has been carried out."""
        if phone_id not in self.phones:
            return
        phone = self.phones[phone_id]
        phone.named = False
        phone.tag = None
        if deed == "stamped":
            phone.tag = int(name)
        if deed == "deleted":
            del self.phones[phone_id]
        self.did(deed, phone_id)

    # What is true

    def abandoned(self) -> list[Phone]:
        """Return the phones that runs should have deleted by the end of a year."""
        return [each for each in self.phones.values() if each.limbo and not each.named]
