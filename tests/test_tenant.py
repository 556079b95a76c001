"""What the other tests rely on in the simulated tenant."""

from __future__ import annotations

import email.utils
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import duo_client.client
import pytest

from tests.simulation.tenant import IKEY, MISSING, SKEY, Tenant
from tests.support import NOW

USERS = "/admin/v1/users"
PHONES = "/admin/v1/phones"
NO_PHONE = f"{PHONES}/DPX"
DONE = (200, {"stat": "OK", "response": ""})
GONE = (404, {"stat": "FAIL", "code": 40401, "message": "Resource not found"})
EMPTY = {"stat": "OK", "response": [], "metadata": {"total_objects": 0}}


class Client(duo_client.client.Client):
    """Duo's own client, which signs what it sends, on a kept connection."""

    def __init__(self, host: str, ca_certs: Any, **how: Any) -> None:
        settings = {"ikey": IKEY, "skey": SKEY, "sig_version": 5, **how}
        super().__init__(host="localhost", **settings)
        context = ssl.create_default_context(cafile=ca_certs)
        self.line = http.client.HTTPSConnection(host, context=context, timeout=5)

    def _make_request(self, *request: Any) -> None:
        self.line.request(*request)

    def call(
        self, method: str = "GET", path: str = USERS, **params: str
    ) -> tuple[int, Any]:
        """Give the status and the document of the answer."""
        self.api_call(method, path, params)
        return self.answer()

    def answer(self) -> tuple[int, Any]:
        response = self.line.getresponse()
        return response.status, json.loads(response.read() or "null")

    def page(self, **params: str) -> tuple[list[str], Any]:
        """Give the names of the users on a page, and its metadata."""
        document = self.call(**params)[1]
        names = [user["username"] for user in document["response"]]
        return names, document["metadata"]


Connect = Callable[..., Client]


@pytest.fixture
def connect(tenant: Tenant) -> Iterator[Connect]:
    """Make clients, whose connections are closed in the end."""
    made = []

    def connect(**how: Any) -> Client:
        made.append(Client(tenant.host, tenant.ca_certs, **how))
        return made[-1]

    yield connect
    for each in made:
        each.line.close()


@pytest.fixture
def client(connect: Connect) -> Client:
    return connect()


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true in five seconds."""
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


# Who may ask


@pytest.mark.parametrize(
    ("how", "late", "code"),
    [
        ({}, 291, None),
        ({}, 309, 40105),
        ({}, -309, 40105),
        ({"skey": SKEY[::-1]}, 0, 40103),
        ({"sig_version": 2}, 0, 40103),
        ({"ikey": IKEY[::-1]}, 0, 40102),
    ],
)
def test_credentials(
    *, tenant: Tenant, connect: Connect, how: Any, late: int, code: int | None
) -> None:
    """Good ones may be used twice."""
    client = connect(**how)
    date = email.utils.formatdate(time.time() - late)
    expected = 200
    if code is not None:
        expected = 401
    with mock.patch("email.utils.formatdate", return_value=date):
        for _ in range(2):
            status, document = client.call()
            assert (status, document.get("code")) == (expected, code)
    sent = [(each.connection, each.sequence, each.status) for each in tenant.requests]
    assert sent == [(1, 1, expected), (1, 2, expected)]


@pytest.mark.parametrize(
    ("function", "result", "code"),
    [
        ("duo_client.client.sign", "", 40101),
        ("email.utils.formatdate", "yesterday", 40104),
    ],
)
def test_bad_headers(client: Client, function: str, result: str, code: int) -> None:
    with mock.patch(function, return_value=result):
        status, document = client.call()
    assert (status, document["code"]) == (401, code)


def test_signatures_cover_odd_characters(tenant: Tenant, client: Client) -> None:
    name = "Zoë & \n~+%/= 漢😀"
    phone = f"{PHONES}/{tenant.add_phone(name)}"
    assert client.page(username_list=json.dumps([name]), x=name)[0] == [name]
    assert client.call("POST", phone, name=name)[1]["response"]["name"] == name


@pytest.mark.parametrize(
    ("permission", "statuses"), [("read", [200, 403, 403]), ("write", [403, 200, 200])]
)
def test_permissions(
    tenant: Tenant, client: Client, permission: str, statuses: list[int]
) -> None:
    phone = f"{PHONES}/{tenant.add_phone()}"
    tenant.permissions = {permission}
    methods = ("GET", "POST", "DELETE")
    assert [client.call(method, phone)[0] for method in methods] == statuses


# Records and listings


def test_records(tenant: Tenant, client: Client) -> None:
    phone_id = tenant.add_phone("ann", "bob", model=None, tampered=MISSING)
    tenant.add_user("cleo", aliases=["c", "cle"], phones=None)
    tenant.change_user("ANN", last_login=NOW, notes=MISSING)
    ann, bob, cleo = client.call()[1]["response"]
    (phone,) = ann["phones"]
    assert bob["phones"] == [phone]
    assert (cleo["phones"], cleo["alias2"], cleo["alias3"]) == (None, "cle", None)
    assert (ann["last_login"], bob["last_login"]) == (NOW, None)
    assert "notes" not in ann
    recorded = {  # of a phone in limbo
        "activated": False,
        "capabilities": ["sms"],
        "last_seen": "",
        "model": None,
        "name": "",
        "phone_id": phone_id,
        "platform": "Generic Smartphone",
        "sms_passcodes_sent": False,
        "type": "Mobile",
    }
    assert recorded.items() <= phone.items()
    assert "tampered" not in phone
    assert len(phone_id) == len(ann["user_id"]) == len(IKEY)
    del ann["phones"], bob["phones"]
    alone = client.call("GET", f"{PHONES}/{phone_id}")[1]["response"]
    assert alone == {**phone, "users": [ann, bob]}
    tenant.move_phone(phone_id, "bob", "dan")
    owned = {user["username"]: user["phones"] for user in client.call()[1]["response"]}
    assert owned == {"ann": [], "bob": [phone], "cleo": None, "dan": [phone]}


@pytest.mark.parametrize(("gone_status", "again"), [(200, DONE), (404, GONE)])
def test_writes(
    tenant: Tenant, client: Client, gone_status: int, again: tuple[int, Any]
) -> None:
    tenant.gone_status = gone_status
    phone_id = tenant.add_phone("ann")
    kept = tenant.add_phone("ann")
    phone = f"{PHONES}/{phone_id}"
    changed = client.call("POST", phone, name=" 1\t", model="x")[1]["response"]
    assert (changed["name"], changed["model"]) == (" 1\t", "Unknown")
    record = tenant.phone(phone_id)
    assert record == tenant.phones[phone_id]
    assert record is not tenant.phones[phone_id]
    assert client.call("DELETE", phone) == DONE
    assert tenant.phone(phone_id) is None
    (ann,) = client.call()[1]["response"]
    assert [each["phone_id"] for each in ann["phones"]] == [kept]
    assert client.call("GET", phone) == client.call("POST", phone) == GONE
    assert client.call("DELETE", phone) == again
    assert client.call("DELETE", NO_PHONE) == GONE


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/admin/v1/tokens", 40401),
        ("GET", f"{PHONES}/../users", 40401),
        ("POST", USERS, 40501),
        ("DELETE", USERS, 40501),
        ("PATCH", NO_PHONE, 40501),
    ],
)
def test_what_there_is_not(client: Client, method: str, path: str, code: int) -> None:
    status, document = client.call(method, path)
    assert (status, document["code"]) == (code // 100, code)


@pytest.mark.parametrize(
    ("params", "rows", "offsets"),
    [
        ({}, range(100), {"next_offset": 100}),
        ({"limit": "300"}, range(300), {"next_offset": 300}),
        ({"limit": "300", "offset": "300"}, range(300, 310), {}),
        ({"offset": "999"}, [], {}),
    ],
)
def test_pages(
    tenant: Tenant, client: Client, params: Any, rows: Any, offsets: Any
) -> None:
    tenant.populate(310)
    total = {"total_objects": 310}
    names = [f"user{number:06}" for number in rows]
    assert client.page(**params) == (names, {**total, **offsets})
    tenant.last_offset_null = True
    assert client.page(**params) == (names, {"next_offset": None, **total, **offsets})
    tenant.fail("end_early")
    assert client.page(**params) == (names, total)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("limit", "301"),
        ("limit", "0"),
        ("limit", "ten"),
        ("offset", "-1"),
        ("username_list", "[]"),
        ("username_list", json.dumps(["ann"] * 101)),
    ],
)
def test_parameters_out_of_bounds(client: Client, name: str, value: str) -> None:
    status, document = client.call("GET", USERS, **{name: value})
    assert (status, document["code"], document["message_detail"]) == (400, 40002, name)


def test_users_by_name(tenant: Tenant, client: Client) -> None:
    """They are on one page, whatever page is asked for."""
    for name in ("Ann", "bob", "cleo", "dan"):
        tenant.add_user(name, aliases=[f"{name}@example.com"])
    names = {"username_list": '["ann", "BOB", "cleo@EXAMPLE.com", "nobody"]'}
    found = ["Ann", "bob", "cleo"]
    for offset in ("0", "1", "9"):
        asked = {**names, "limit": "1", "offset": offset}
        assert client.page(**asked) == (found, {"total_objects": 3})
        tenant.fail("ignore_names")
        assert client.page(**asked) == client.page(limit="1", offset=offset)
        assert tenant.requests[-2].params == asked
    tenant.look_up_counts_all = True
    assert client.page(**names) == (found, {"total_objects": 4})
    assert client.page(username_list='["nobody"]')[0] == []


# Faults


def refusal(code: Any, message: str) -> Any:
    return code // 100, {"stat": "FAIL", "code": code, "message": message}


ODD = {"code": "", "message": "No", "message_detail": "why"}


@pytest.mark.parametrize(
    ("kind", "how", "deleted", "outcome"),
    [
        ("status", {}, False, refusal(50301, "Service Unavailable")),
        ("status", {"status": 404}, False, GONE),
        ("status", {"status": 409}, False, refusal(40901, "Conflict")),
        ("status", {"status": 400, **ODD}, False, (400, {"stat": "FAIL", **ODD})),
        ("status", {"status": 200, "body": b"[1]"}, False, (200, [1])),
        ("reset_before", {}, False, ConnectionResetError),
        ("reset_after", {}, True, ConnectionResetError),
        ("close_before", {}, False, http.client.RemoteDisconnected),
        ("truncate", {}, True, http.client.IncompleteRead),
        ("truncate", {"length": 10**9}, True, http.client.IncompleteRead),
        ("answer", {"body": b"7"}, True, (200, 7)),
        ("answer", {"response": 1}, True, (200, {"stat": "OK", "response": 1})),
        ("hang", {}, False, socket.timeout),
        ("close_after", {}, True, DONE),
        ("connection_close", {}, True, DONE),
        ("answer_twice", {}, True, DONE),
        ("interim", {}, True, (103, None)),
    ],
)
def test_faults(
    tenant: Tenant, client: Client, kind: str, how: Any, deleted: bool, outcome: Any
) -> None:
    phone_id = tenant.add_phone("ann")
    phone = f"{PHONES}/{phone_id}"
    fault = tenant.fail(kind, method="DELETE", path=phone_id, **how)
    assert client.call("GET", phone)[0] == 200
    if outcome is socket.timeout:
        client.line.sock.settimeout(0.2)
    if isinstance(outcome, tuple):
        assert client.call("DELETE", phone) == outcome
    else:
        with pytest.raises(outcome):
            client.call("DELETE", phone)
    assert eventually(lambda: fault.hits == 1)
    assert eventually(lambda: (tenant.phone(phone_id) is None) == deleted)
    assert fault.times == 0


@pytest.mark.parametrize(
    ("kind", "next_answer"),
    [
        ("interim", GONE),  # the true one to the first request
        ("answer_twice", GONE),
        ("connection_close", (200, EMPTY)),  # on a new connection
        ("close_after", None),
    ],
)
def test_what_the_next_request_finds(
    tenant: Tenant, client: Client, kind: str, next_answer: Any
) -> None:
    tenant.fail(kind)
    client.call("GET", NO_PHONE)
    if next_answer is None:
        with pytest.raises(OSError):
            client.call()
    else:
        assert client.call() == next_answer
    assert (tenant.connections == 1) == (kind != "connection_close")


@pytest.mark.parametrize(("page", "listed"), [("empty", []), ("same", ["ann", "bob"])])
def test_a_listing_without_end(
    tenant: Tenant, client: Client, page: str, listed: list[str]
) -> None:
    for name in ("ann", "bob", "cleo"):
        tenant.add_user(name)
    tenant.fail("endless", page=page, times=None)
    for offset in (0, 2, 1000):
        metadata = {"total_objects": 3, "next_offset": offset + 2}
        assert client.page(limit="2", offset=str(offset)) == (listed, metadata)


def test_faults_in_turn(tenant: Tenant, client: Client) -> None:
    tenant.fail("status", status=500, after=1)
    lasting = tenant.fail("status", path="users$", after=2, times=None)
    assert [client.call()[0] for _ in range(5)] == [200, 500, 503, 503, 503]
    assert client.call("GET", NO_PHONE) == GONE
    lasting.times = 0
    assert client.call()[0] == 200
    with pytest.raises(TypeError, match="statsu"):
        tenant.fail("status", statsu=500)


def test_a_request_that_hangs(tenant: Tenant, client: Client) -> None:
    phone_id = tenant.add_phone()
    fault = tenant.fail("hang", times=None)
    client.api_call("DELETE", f"{PHONES}/{phone_id}", {})
    assert fault.held.wait(5)
    assert tenant.phone(phone_id)
    fault.released.set()
    assert client.answer() == DONE
    assert client.call() == (200, EMPTY)


def test_a_request_that_hangs_ends_with_its_client(
    tenant: Tenant, client: Client
) -> None:
    phone_id = tenant.add_phone()
    fault = tenant.fail("hang")
    client.api_call("DELETE", f"{PHONES}/{phone_id}", {})
    assert fault.held.wait(5)
    (thread,) = tenant._threads
    client.line.close()
    thread.join(5)
    assert not thread.is_alive()
    assert tenant.phone(phone_id)


# Connections


def test_connections_are_refused(tenant: Tenant, connect: Connect) -> None:
    kept = connect()
    kept.line.connect()
    tenant.refuse(2)
    for _ in range(2):
        with pytest.raises(OSError):
            connect().line.connect()
    assert kept.call() == connect().call() == (200, EMPTY)
    assert tenant.connections == 2


def test_idle_connections_are_closed(tenant: Tenant, connect: Connect) -> None:
    """That of a request under way is not."""
    used, unused, busy = connect(), connect(), connect()
    assert used.call()[0] == 200
    unused.line.connect()
    assert eventually(lambda: tenant.connections == 2)
    tenant.on_request(lambda _: tenant.close_idle())
    assert busy.call()[0] == 200
    assert busy.call()[0] == 200
    for idle in (used, unused):
        with pytest.raises(OSError):
            idle.call()
    assert [each.connection for each in tenant.requests] == [1, 3, 3]


def test_it_runs_by_itself() -> None:
    command = [sys.executable, "-m", "tests.simulation.tenant", "--users", "3"]
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root
    ) as child:
        lines = [child.stdout.readline() for _ in range(4)]  # type: ignore[union-attr]
        settings = dict(line[len("export ") :].strip().split("=", 1) for line in lines)
        ca_certs = settings["DUO_CA_CERTS"]
        client = Client(settings["DUO_HOST"], ca_certs)
        assert len(client.page()[0]) == 10
        client.line.close()
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
    assert not Path(ca_certs).exists()
