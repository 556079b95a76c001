"""What the other tests rely on in the simulated tenant."""

from __future__ import annotations

import email.utils
import http.client
import json
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import duo_client
import duo_client.client
import pytest

from tests.simulation.tenant import IKEY, MISSING, SKEY, Request, Tenant, cast

pytestmark = [
    # duo_client makes connections in a way that newer Pythons warn of,
    pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS:DeprecationWarning"),
    # and leaves them open after an error; so do some tests here.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.usefixtures("_garbage_collected"),
]

USERS = "/admin/v1/users"
PHONES = "/admin/v1/phones"
FIVE_MINUTES = 300
HOUR = 3600
NOW = 1_700_000_000
BAD_SIGNATURE = "Invalid signature in request credentials"
BAD_IKEY = "Invalid integration key in request credentials"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@pytest.fixture
def tenant() -> Iterator[Tenant]:
    with Tenant() as tenant:
        yield tenant


def admin(tenant: Tenant, **how: Any) -> Any:
    """Duo's own client, which gives up on a 429 at once."""
    host, port = tenant.host.split(":")
    settings = {"ikey": IKEY, "skey": SKEY, "host": host, "port": int(port), **how}
    client = duo_client.Admin(ca_certs=str(tenant.ca_certs), timeout=5, **settings)
    client._MAX_BACKOFF_WAIT_SECS = 0
    return client


def get(tenant: Tenant, path: str, **params: Any) -> Any:
    return admin(tenant).json_api_call("GET", path, params)


def page(tenant: Tenant, path: str = USERS, **params: Any) -> tuple[Any, Any]:
    """The records of a listing, and its metadata."""
    client = admin(tenant)
    answer = client.api_call("GET", path, params)
    rows, metadata = client.parse_json_response_and_metadata(*answer)
    return rows, metadata


def refused(call: Any, *args: Any, **params: Any) -> tuple[int, int, str]:
    """The status, code and message that a call is refused with."""
    with pytest.raises(RuntimeError) as info:
        call(*args, **params)
    error: Any = info.value
    data = error.data
    if not isinstance(data, dict):
        data = json.loads(data)
    assert data["stat"] == "FAIL"
    return error.status, data["code"], str(error)


def eventually(condition: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether it comes true in this time."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


class Connection(http.client.HTTPSConnection):
    """A kept connection that signs what it sends."""

    def __init__(self, tenant: Tenant) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(tenant.ca_certs)
        super().__init__(tenant.host, context=context, timeout=5)

    def ask(
        self,
        method: str = "GET",
        path: str = USERS,
        *,
        date: str | None = None,
        target: str | None = None,
        **headers: str,
    ) -> None:
        if date is None:
            date = email.utils.formatdate()
        auth = duo_client.client.sign(
            ikey=IKEY,
            skey=SKEY,
            method=method,
            host="localhost",
            uri=path,
            date=date,
            sig_version=5,
            params={},
            body="",
        )
        signed = {"Authorization": auth, "Date": date, **headers}
        self.request(method, target or path, headers=signed)

    def call(self, *args: Any, **how: Any) -> tuple[int, Any]:
        self.ask(*args, **how)
        response = self.getresponse()
        return response.status, json.loads(response.read() or "null")


# Who may ask


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ({"skey": SKEY[::-1]}, 40103, BAD_SIGNATURE),
        ({"ikey": IKEY[::-1]}, 40102, BAD_IKEY),
        ({"sig_version": 2}, 40103, BAD_SIGNATURE),
    ],
)
def test_wrong_credentials_are_refused(
    tenant: Tenant, how: dict[str, Any], code: int, message: str
) -> None:
    client = admin(tenant, **how)
    assert refused(client.get_users) == (401, code, f"Received 401 {message}")
    assert [r.status for r in tenant.requests] == [401]


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Authorization": ""}, 40101),
        ({"Authorization": "Basic junk!"}, 40101),
        ({"date": "yesterday"}, 40104),
        ({"date": -FIVE_MINUTES - 9}, 40105),
        ({"date": FIVE_MINUTES + 9}, 40105),
    ],
)
def test_bad_headers_are_refused(
    tenant: Tenant, headers: dict[str, Any], code: int
) -> None:
    if isinstance(headers.get("date"), int):  # seconds from now, not from collection
        headers = {"date": email.utils.formatdate(time.time() + headers["date"])}
    status, document = Connection(tenant).call(**headers)
    assert (status, document["code"]) == (401, code)


def test_a_request_is_accepted_within_five_minutes_and_twice(tenant: Tenant) -> None:
    date = email.utils.formatdate(time.time() - FIVE_MINUTES + 9)
    connection = Connection(tenant)
    assert connection.call(date=date)[0] == 200
    assert connection.call(date=date)[0] == 200
    assert tenant.connections == 1
    assert tenant.server_names == ["localhost"]
    assert [(r.connection, r.sequence) for r in tenant.requests] == [(1, 1), (1, 2)]


def test_a_whole_url_is_accepted_as_from_a_proxy(tenant: Tenant) -> None:
    target = f"https://{tenant.host}{USERS}"
    assert Connection(tenant).call(target=target)[0] == 200
    assert tenant.requests[0].path == USERS


def test_signatures_cover_odd_characters(tenant: Tenant) -> None:
    name = "Zoë & \n~+%/= 漢😀"
    phone_id = tenant.add_phone(name)
    (user,) = get(tenant, USERS, username=name)
    assert user["username"] == name
    client = admin(tenant)
    assert client.update_phone(phone_id, name=name)["name"] == name
    assert tenant.phones[phone_id]["name"] == name


def test_permissions(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    client = admin(tenant)
    tenant.permissions.discard("write")
    expected = (403, 40301, "Received 403 Access forbidden")
    assert client.get_phone_by_id(phone_id)["phone_id"] == phone_id
    assert refused(client.update_phone, phone_id, name="x") == expected
    assert refused(client.delete_phone, phone_id) == expected
    tenant.permissions.clear()
    assert refused(client.get_users) == expected


def test_the_certificate_names_the_host_asked_for() -> None:
    with (
        Tenant(cert_host="duo.example") as tenant,
        pytest.raises(ssl.SSLCertVerificationError, match="localhost"),
    ):
        Connection(tenant).call()


# Records and listings


def test_records_have_the_documented_fields(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann", tampered=MISSING, model=None)
    user_id = tenant.add_user("bob", aliases=["b", "bobby"], phones=None)
    client = admin(tenant)
    ann, bob = client.get_users()
    phone = client.get_phone_by_id(phone_id)
    assert len(phone_id) == len(user_id) == len(ann["user_id"]) == len(IKEY) == 20
    assert [p["phone_id"] for p in ann["phones"]] == [phone_id]
    assert {k: v for k, v in phone.items() if k != "users"} == ann["phones"][0]
    assert [user["username"] for user in phone["users"]] == ["ann"]
    assert "phones" not in phone["users"][0]
    assert phone["model"] is None
    assert "tampered" not in phone
    assert bob["phones"] is None
    assert (bob["alias2"], bob["alias3"]) == ("bobby", None)
    assert client.get_user_by_id(user_id) == bob
    assert client.get_phones() == [client.update_phone(phone_id)] == [phone]


def test_a_phone_is_like_the_recorded_one_in_limbo(tenant: Tenant) -> None:
    tenant.add_phone("ann")
    (ann,) = get(tenant, USERS)
    (phone,) = ann["phones"]
    recorded = {
        "activated": False,
        "capabilities": ["sms"],
        "last_seen": "",
        "model": "Unknown",
        "name": "",
        "platform": "Generic Smartphone",
        "sms_passcodes_sent": False,
        "type": "Mobile",
    }
    assert {name: phone[name] for name in recorded} == recorded
    assert phone["number"].startswith("+1555")
    assert ann["is_enrolled"] is True
    assert ann["last_login"] is None


@pytest.mark.parametrize(
    ("phones", "fields", "enrolled"),
    [
        (0, {}, False),
        (0, {"phones": None}, False),
        (1, {}, True),
        (1, {"is_enrolled": False}, False),
        (0, {"is_enrolled": True}, True),
        (1, {"is_enrolled": MISSING}, None),
    ],
)
def test_who_has_a_phone_is_enrolled(
    tenant: Tenant, phones: int, fields: dict[str, Any], enrolled: bool | None
) -> None:
    user_id = tenant.add_user("ann", **fields)
    tenant.add_phone("bob", "ann")
    if phones == 0:
        tenant.users[user_id]["phones"].clear()
    ann, bob = get(tenant, USERS)
    assert ann.get("is_enrolled") == enrolled
    assert bob["is_enrolled"] is True
    tenant.phones.clear()
    ann, bob = get(tenant, USERS)
    assert bob["is_enrolled"] is False


def test_users_within_a_phones_record(tenant: Tenant) -> None:
    tenant.add_user("ann", last_login=NOW)
    tenant.add_user("bob", is_enrolled=True)
    phone_id = tenant.add_phone("ann", "bob")
    in_a_listing = get(tenant, USERS)
    assert [user["is_enrolled"] for user in in_a_listing] == [True, True]
    for phone in (get(tenant, f"{PHONES}/{phone_id}"), get(tenant, PHONES)[0]):
        ann, bob = phone["users"]
        assert (ann["username"], ann["last_login"]) == ("ann", NOW)
        assert (bob["username"], bob["last_login"]) == ("bob", None)
        assert ann["is_enrolled"] is False
        assert bob["is_enrolled"] is False


def test_a_user_logs_in(tenant: Tenant) -> None:
    tenant.add_phone("ann")
    tenant.change_user("Ann", last_login=NOW, notes=MISSING)
    (ann,) = get(tenant, USERS)
    assert ann["last_login"] == NOW
    assert "notes" not in ann
    assert len(ann["phones"]) == 1


def test_a_phone_moves_to_other_users(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann", "bob")
    kept = tenant.add_phone("ann")
    tenant.move_phone(phone_id, "bob", "cleo")
    phone = get(tenant, f"{PHONES}/{phone_id}")
    assert [user["username"] for user in phone["users"]] == ["bob", "cleo"]
    owned = {}
    for user in get(tenant, USERS):
        owned[user["username"]] = [phone["phone_id"] for phone in user["phones"]]
    assert owned == {"ann": [kept], "bob": [phone_id], "cleo": [phone_id]}


def test_a_phone_is_modified_and_deleted(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("fay", "gus")
    client = admin(tenant)
    assert client.update_phone(phone_id, name=" 1\t")["name"] == " 1\t"
    copied = tenant.phone(phone_id)
    assert copied == tenant.phones[phone_id]
    assert copied is not tenant.phones[phone_id]
    assert client.delete_phone(phone_id) == ""
    assert tenant.phone(phone_id) is None
    assert [user["phones"] for user in client.get_users()] == [[], []]
    gone = (404, 40401, "Received 404 Resource not found")
    assert refused(client.get_phone_by_id, phone_id) == gone
    assert refused(client.update_phone, phone_id) == gone


@pytest.mark.parametrize(
    ("delete_status", "gone_status"), [(200, 200), (204, 204), (200, 204), (204, 404)]
)
def test_deleting(tenant: Tenant, delete_status: int, gone_status: int) -> None:
    assert tenant.delete_status == 200
    assert tenant.gone_status == 200
    tenant.delete_status = delete_status
    tenant.gone_status = gone_status
    deleted = tenant.add_phone()
    gone = tenant.add_phone()
    kept = tenant.add_phone()
    del tenant.phones[gone]
    connection = Connection(tenant)

    def answer(method: str, phone_id: str) -> tuple[int, Any]:
        status, document = connection.call(method, f"{PHONES}/{phone_id}")
        if document is None:
            return status, None
        return status, document.get("code", document.get("response"))

    answers = {200: (200, ""), 204: (204, None), 404: (404, 40401)}
    assert answer("DELETE", deleted) == answers[delete_status]
    for phone_id in (deleted, gone):
        assert answer("DELETE", phone_id) == answers[gone_status]
        assert answer("GET", phone_id) == answers[404]
        assert answer("POST", phone_id) == answers[404]
    assert answer("DELETE", "DPX") == answers[404]
    assert list(tenant.phones) == [kept]
    assert tenant.connections == 1


def test_an_answer_without_a_body(tenant: Tenant) -> None:
    tenant.delete_status = 204
    connection = Connection(tenant)
    connection.ask("DELETE", f"{PHONES}/{tenant.add_phone()}")
    assert connection.sock.recv(999) == b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/admin/v1/tokens", 404, 40401),
        ("GET", USERS + "/DUX", 404, 40401),
        ("GET", PHONES + "/../users", 404, 40401),
        ("POST", USERS, 405, 40501),
        ("DELETE", PHONES, 405, 40501),
        ("PATCH", PHONES + "/DPX", 405, 40501),
    ],
)
def test_what_there_is_not(
    tenant: Tenant, method: str, path: str, status: int, code: int
) -> None:
    answer = Connection(tenant).call(method, path)
    assert (answer[0], answer[1]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "params", "rows", "offsets"),
    [
        (USERS, {}, 100, {"next_offset": 100}),
        (USERS, {"limit": "300"}, 300, {"next_offset": 300}),
        (USERS, {"limit": "300", "offset": "300"}, 10, {"prev_offset": 0}),
        (USERS, {"offset": "999"}, 0, {"prev_offset": 899}),
        (PHONES, {"limit": "500"}, 248, {}),
    ],
)
def test_pages(
    tenant: Tenant, path: str, params: dict[str, str], rows: int, offsets: Any
) -> None:
    tenant.populate(310)
    totals = {USERS: 310, PHONES: 248}
    metadata = {"total_objects": totals[path], **offsets}
    response, found = page(tenant, path, **params)
    assert len(response) == rows
    assert found == metadata
    tenant.last_offset_null = True
    assert page(tenant, path, **params)[1] == {"next_offset": None, **metadata}
    tenant.fail("end_early")
    metadata.pop("next_offset", None)
    assert page(tenant, path, **params) == (response, metadata)


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (USERS, "limit", "301"),
        (USERS, "limit", "0"),
        (USERS, "limit", "ten"),
        (USERS, "offset", "-1"),
        (PHONES, "limit", "501"),
        (USERS, "username_list", "ann"),
        (USERS, "username_list", "[1]"),
        (USERS, "username_list", json.dumps(["ann"] * 101)),
    ],
)
def test_parameters_out_of_bounds(
    tenant: Tenant, path: str, name: str, value: str
) -> None:
    message = f"Received 400 Invalid request parameters ({name})"
    assert refused(get, tenant, path, **{name: value}) == (400, 40002, message)


def test_users_by_name(tenant: Tenant) -> None:
    for name in ("Ann", "bob", "cleo"):
        tenant.add_user(name, aliases=[name + "@example.com"])
    client = admin(tenant, paging_limit=2)

    def named(*names: str) -> list[str]:
        return [user["username"] for user in client.get_users_by_names(names)]

    assert named("ann", "BOB", "cleo@EXAMPLE.com", "dan") == ["Ann", "bob", "cleo"]
    assert [r.params["limit"] for r in tenant.requests] == ["2"]  # of no effect
    assert named("dan") == []
    (ann,) = client.get_users_by_name("ANN@example.com")
    assert ann["username"] == "Ann"


def test_the_total_of_a_look_up_may_count_all_users(tenant: Tenant) -> None:
    for name in ("ann", "bob", "cleo"):
        tenant.add_user(name)
    params = {"username_list": '["ann", "bob"]'}
    rows, metadata = page(tenant, **params)
    assert metadata == {"total_objects": 2}
    tenant.look_up_counts_all = True
    assert page(tenant, **params) == (rows, {"total_objects": 3})


LOOK_UPS = {"username": "bob", "username_list": '["bob", "cleo", "dan"]'}


@pytest.mark.parametrize("name", LOOK_UPS)
@pytest.mark.parametrize("offset", ["0", "1", "9"])
def test_a_look_up_has_one_page_unless_the_names_are_ignored(
    tenant: Tenant, name: str, offset: str
) -> None:
    users = ["ann", "bob", "cleo", "dan"]
    for user in users:
        tenant.add_user(user)
    found = {"username": ["bob"], "username_list": ["bob", "cleo", "dan"]}[name]
    params = {name: LOOK_UPS[name], "limit": "1", "offset": offset}
    rows, metadata = page(tenant, **params)
    assert [user["username"] for user in rows] == found
    assert metadata == {"total_objects": len(found)}
    tenant.fail("ignore_names")
    ignored = page(tenant, **params)
    assert ignored == page(tenant, limit="1", offset=offset)
    assert ignored[1]["total_objects"] == 4
    assert tenant.requests[-2].params == params
    assert page(tenant, **params) == (rows, metadata)
    message = "Received 400 Invalid request parameters (limit)"
    bad = {**params, "limit": "301"}
    assert refused(get, tenant, USERS, **bad) == (400, 40002, message)


def test_populate_is_deterministic_and_has_holes() -> None:
    first, second = Tenant(clock=lambda: NOW), Tenant(clock=lambda: NOW)
    first.populate(200)
    second.populate(200)
    assert first.users == second.users
    assert first.phones == second.phones
    assert {len(user.get("phones") or []) for user in first.users.values()} == {0, 1, 2}
    assert any("phones" not in user for user in first.users.values())
    phones = first.phones.values()
    assert not any(phone["platform"] == "Generic Smartphone" for phone in phones)
    assert any("name" not in phone for phone in phones)
    assert any(phone.get("name", "") is None for phone in phones)
    logins = [user["last_login"] for user in first.users.values()]
    assert None in logins
    assert NOW - HOUR in logins


def test_the_cast(tenant: Tenant) -> None:
    cast(tenant, NOW + 0.5)
    users = get(tenant, USERS)
    names = {user["username"]: user["phones"][0]["name"] for user in users}
    assert names == {
        "ann": "",
        "bob": str(NOW - HOUR),
        "cleo": str(NOW - 240),
        "dan": "Dan's spare",
        "eve": "iPhone",
        "fay": str(NOW - 2 * HOUR),
        "gus": str(NOW - 2 * HOUR),
    }
    logins = {user["username"]: user["last_login"] for user in users}
    assert logins == {
        "ann": None,
        "bob": None,
        "cleo": NOW - 720 * HOUR,
        "dan": NOW - 24 * HOUR,
        "eve": NOW - HOUR // 2,
        "fay": NOW - 2 * HOUR,
        "gus": None,
    }
    assert all(phone["users"] for phone in get(tenant, PHONES))


# Faults


ODD_ERROR = {"status": 400, "code": 40003, "message": "No", "message_detail": "why"}


@pytest.mark.parametrize(
    ("kind", "how", "error", "deleted", "status"),
    [
        ("status", {}, "503 Service Unavailable", False, 503),
        ("status", {"status": 401}, "401 Missing request credentials", False, 401),
        ("status", {"status": 502}, "502 Bad Gateway", False, 502),
        ("status", ODD_ERROR, r"400 No \(why\)", False, 400),
        ("status", {"status": 200, "body": b"}"}, "bad response: }", False, 200),
        ("reset_before", {}, ConnectionResetError, False, None),
        ("reset_after", {}, ConnectionResetError, True, None),
        ("close_before", {}, http.client.RemoteDisconnected, False, None),
        ("truncate", {}, http.client.IncompleteRead, True, 200),
        ("junk", {}, "<html>not json", True, 200),
        ("junk", {"body": b"\xff"}, UnicodeDecodeError, True, 200),
        ("answer", {"envelope": [1]}, r"bad response: \[1\]", True, 200),
        ("hang", {}, TimeoutError, False, None),
        ("hang", {"before": False}, TimeoutError, True, None),
    ],
)
def test_faults(
    tenant: Tenant,
    kind: str,
    how: dict[str, Any],
    error: str | type[Exception],
    deleted: bool,
    status: int | None,
) -> None:
    phone_id = tenant.add_phone("ann")
    fault = tenant.fail(kind, method="DELETE", path=phone_id, **how)
    client = admin(tenant)
    assert client.get_phone_by_id(phone_id)
    if kind == "hang":
        client.timeout = 0.2
    expected: Any = error
    message = None
    if isinstance(error, str):
        expected = RuntimeError
        message = error
    elif error is TimeoutError:
        expected = (TimeoutError, socket.timeout)  # two errors in Python 3.9
    with pytest.raises(expected, match=message):
        client.delete_phone(phone_id)
    assert (tenant.phone(phone_id) is None) == deleted
    assert tenant.requests[-1].status == status
    assert (fault.hits, fault.times) == (1, 0)
    client.timeout = 5
    assert [user["username"] for user in client.get_users()] == ["ann"]


@pytest.mark.parametrize(
    ("how", "response", "metadata"),
    [
        ({"response": [1]}, [1], {"total_objects": 1}),
        ({"metadata": None}, None, None),
        ({"response": "x", "metadata": MISSING}, "x", {}),
        ({"response": [], "metadata": {"next_offset": 5}}, [], {"next_offset": 5}),
    ],
)
def test_other_answers(
    tenant: Tenant, how: dict[str, Any], response: Any, metadata: Any
) -> None:
    tenant.add_user("ann")
    tenant.fail("answer", **how)
    assert page(tenant) == (response, metadata)


@pytest.mark.parametrize(
    ("how", "code", "message"),
    [
        ({"status": 404}, 40401, "Resource not found"),
        ({"status": 409}, 40901, "Conflict"),
        ({"status": 500}, 50000, "Internal Server Error"),
        ({"status": 500, "code": 50001}, 50001, "Internal Server Error"),
        ({"status": 500, "code": ""}, "", "Internal Server Error"),
    ],
)
def test_codes_of_errors(
    tenant: Tenant, how: dict[str, Any], code: Any, message: str
) -> None:
    tenant.fail("status", path="users$", **how)
    document = {"stat": "FAIL", "code": code, "message": message}
    assert Connection(tenant).call() == (how["status"], document)


def test_closing_connections(tenant: Tenant) -> None:
    connection = Connection(tenant)
    tenant.fail("connection_close")
    tenant.fail("close_after")
    assert connection.call()[0] == 200
    assert connection.call()[0] == 200  # on a new connection, as http.client was told
    with pytest.raises(OSError):
        connection.call()
    assert tenant.connections == 2


def test_an_idle_connection_is_closed_without_a_word(tenant: Tenant) -> None:
    assert tenant.idle_seconds == 60
    # From the first request on, lest it come too late on a busy machine.
    tenant.on_request(lambda _: setattr(tenant, "idle_seconds", 0.05))
    connection = Connection(tenant)
    assert connection.call()[0] == 200
    assert connection.sock.recv(1) == b""
    with pytest.raises(OSError):
        connection.call()
    assert len(tenant.requests) == 1


def test_a_request_that_has_begun_is_not_idle(tenant: Tenant) -> None:
    tenant.slow(request=0.1)
    connection = Connection(tenant)
    connection.connect()
    request = b"GET / HTTP/1.1\r\n\r\n"
    connection.sock.sendall(request + request[:5])
    tenant.wait_for()
    tenant.idle_seconds = 0.05
    assert b" 401 " in connection.sock.recv(999)
    assert not select.select([connection.sock], [], [], 0.2)[0]
    connection.sock.sendall(request[5:])
    assert b" 401 " in connection.sock.recv(999)
    assert connection.sock.recv(999) == b""


def test_faults_in_turn(tenant: Tenant) -> None:
    client = admin(tenant)
    tenant.fail("status", status=500, after=1)
    lasting = tenant.fail("status", path="users$", after=2, times=None)

    def status() -> Any:
        client.api_call("GET", USERS, {})
        return tenant.requests[-1].status

    assert [status() for _ in range(5)] == [200, 500, 503, 503, 503]
    assert client.get_phones() == []
    lasting.times = 0
    assert status() == 200
    with pytest.raises(TypeError, match="statsu"):
        tenant.fail("status", statsu=500)
    with pytest.raises(TypeError, match="seconds"):
        tenant.fail("delay")
    with pytest.raises(KeyError):
        tenant.fail("reset")
    with pytest.raises(ValueError, match="smae"):
        tenant.fail("endless", page="smae")


def test_a_hanging_request_goes_on_when_released(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    tenant.fail("hang")
    client = admin(tenant)
    thread = threading.Thread(target=client.delete_phone, args=(phone_id,))
    thread.start()
    tenant.wait_for(method="DELETE")
    assert tenant.phone(phone_id)
    tenant.release()
    thread.join()
    assert tenant.phone(phone_id) is None


@pytest.mark.parametrize("left", ["closed", "reset"])
def test_how_a_client_gave_up(tenant: Tenant, left: str) -> None:
    fault = tenant.fail("hang", after=1)
    connection = Connection(tenant)
    assert connection.call()[0] == 200  # and the session tickets have been read
    connection.ask()
    assert fault.held.wait(5)
    assert tenant.requests[1].left is None
    if left == "reset":
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()
    assert eventually(lambda: tenant.requests[1].left is not None)
    assert tenant.requests[1].left == left
    assert not fault.carried_out.is_set()


@pytest.mark.parametrize("stays", [True, False])
def test_a_held_request_is_carried_out_late(tenant: Tenant, stays: bool) -> None:
    phone_id = tenant.add_phone("ann")
    fault = tenant.fail("hold", method="DELETE", after=1)
    connection = Connection(tenant)
    assert connection.call("DELETE", f"{PHONES}/DPX")[0] == 404
    connection.ask("DELETE", f"{PHONES}/{phone_id}")
    assert fault.held.wait(5)
    if not stays:
        connection.close()
    assert not fault.carried_out.wait(0.1)
    assert tenant.phone(phone_id) is not None
    tenant.release()
    assert fault.carried_out.wait(5)
    assert tenant.phone(phone_id) is None
    if stays:
        assert connection.getresponse().status == 200
        assert tenant.requests[1].left is None
    else:
        assert eventually(lambda: not tenant._threads)
        assert tenant.requests[1].status is None
        assert tenant.requests[1].left == "closed"


def test_a_request_is_held_for_some_seconds(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    fault = tenant.fail("hold", method="DELETE", seconds=0.2)
    connection = Connection(tenant)
    connection.connect()
    start = time.monotonic()
    connection.ask("DELETE", f"{PHONES}/{phone_id}")
    assert fault.held.wait(5)
    connection.close()
    assert tenant.phone(phone_id) is not None
    assert fault.carried_out.wait(5)
    assert time.monotonic() - start >= 0.2
    assert tenant.phone(phone_id) is None


def test_chosen_requests_are_delayed(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    fault = tenant.fail("delay", seconds=0.5, method="GET", path="phones/", after=1)
    connection = Connection(tenant)

    def seconds(method: str, path: str) -> float:
        start = time.monotonic()
        assert connection.call(method, path)[0] == 200
        return time.monotonic() - start

    phone = f"{PHONES}/{phone_id}"
    assert seconds("GET", USERS) < 0.5
    assert seconds("GET", phone) < 0.5
    assert seconds("POST", phone) < 0.5
    assert seconds("GET", phone) >= 0.5
    assert seconds("GET", phone) < 0.5
    assert fault.hits == 1


def test_a_delayed_request_is_carried_out_at_once(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    fault = tenant.fail("delay", method="DELETE", seconds=60)
    connection = Connection(tenant)
    assert connection.call()[0] == 200  # and the session tickets have been read
    connection.ask("DELETE", f"{PHONES}/{phone_id}")
    assert fault.carried_out.wait(5)
    assert tenant.phone(phone_id) is None
    assert not select.select([connection.sock], [], [], 0.1)[0]


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ({}, b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        ({"status": 102}, b"HTTP/1.1 102 Processing\r\n\r\n"),
        ({"status": 199}, b"HTTP/1.1 199 \r\n\r\n"),
    ],
)
def test_an_interim_answer(tenant: Tenant, how: dict[str, Any], line: bytes) -> None:
    phone_id = tenant.add_phone("ann")
    tenant.fail("interim", **how)
    tenant.slow(request=0.2)
    connection = Connection(tenant)
    connection.ask("DELETE", f"{PHONES}/{phone_id}")
    assert connection.sock.recv(999) == line
    assert tenant.phone(phone_id) is None
    assert not select.select([connection.sock], [], [], 0.05)[0]
    response = http.client.HTTPResponse(connection.sock)
    response.begin()
    assert response.status == 200
    assert json.loads(response.read()) == {"stat": "OK", "response": ""}
    assert tenant.requests[0].status == 200


RAW_ANSWER = b"HTTP/1.1 201 Why not\r\nContent-Length: 3\r\n\r\n[1]"


@pytest.mark.parametrize(
    ("how", "second"),
    [
        ({}, (200, {"stat": "OK", "response": ""})),
        ({"response": [5]}, (200, {"stat": "OK", "response": [5]})),
        ({"status": 204}, (204, None)),
        ({"data": RAW_ANSWER}, (201, [1])),
    ],
)
def test_a_second_answer_lies_on_the_connection(
    tenant: Tenant, how: dict[str, Any], second: tuple[int, Any]
) -> None:
    tenant.populate(300)
    connection = Connection(tenant)
    first = connection.call()
    assert len(str(first)) > 50_000  # more than one read takes
    assert not select.select([connection.sock], [], [], 0.05)[0]
    tenant.fail("answer_twice", **how)
    assert connection.call() == first
    assert select.select([connection.sock], [], [], 0)[0]
    # So a client that does not look is always one answer behind.
    assert connection.call(path=f"{PHONES}/DPX") == second
    assert connection.call()[0] == 404
    assert tenant.connections == 1


@pytest.mark.parametrize("ending", ["empty", "same"])
def test_a_listing_without_end(tenant: Tenant, ending: str) -> None:
    for name in ("ann", "bob", "cleo"):
        tenant.add_user(name)
    tenant.fail("endless", page=ending, path="users$", after=1, times=None)
    whole = page(tenant, limit="2")
    assert [user["username"] for user in whole[0]] == ["ann", "bob"]
    listed = {"empty": [], "same": ["ann", "bob"]}[ending]
    for offset in (0, 2, 4, 1000):
        rows, metadata = page(tenant, limit="2", offset=str(offset))
        assert [user["username"] for user in rows] == listed
        assert metadata["total_objects"] == 3
        assert metadata["next_offset"] == offset + 2
    rows, metadata = page(tenant)
    assert metadata["next_offset"] == 100
    assert refused(get, tenant, USERS, limit="301")[0] == 400


def test_an_answer_that_drips(tenant: Tenant) -> None:
    connection = Connection(tenant)
    expected = connection.call()
    tenant.fail("drip", pause=0.001)
    connection.ask()
    response = connection.getresponse()
    pieces = [*iter(lambda: response.read1(99), b"")]
    assert {len(piece) for piece in pieces} == {1}
    assert json.loads(b"".join(pieces)) == expected[1]
    assert tenant.requests[-1].status == 200


def test_a_dripping_answer_is_whole_when_released(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    tenant.fail("drip", pause=60)
    connection = Connection(tenant)
    connection.ask("DELETE", f"{PHONES}/{phone_id}")
    response = connection.getresponse()
    assert response.read(1) == b"{"
    assert not select.select([connection.sock], [], [], 0.1)[0]
    assert tenant.phone(phone_id) is None
    assert tenant.requests[0].status is None
    tenant.release()
    assert response.read() == b'"stat":"OK","response":""}'
    assert tenant.requests[0].status == 200
    assert connection.call()[0] == 200


# Connections that are refused or closed


def connect(tenant: Tenant) -> Connection:
    connection = Connection(tenant)
    connection.connect()
    return connection


def test_connections_are_refused(tenant: Tenant) -> None:
    kept = connect(tenant)
    tenant.refuse(times=2)
    for _ in range(2):
        with pytest.raises(OSError):
            connect(tenant)
    assert connect(tenant).call()[0] == 200
    assert kept.call()[0] == 200
    assert tenant.refused == 2
    assert tenant.connections == 2
    assert len(tenant.requests) == 2


def test_connections_are_refused_until_told_otherwise(tenant: Tenant) -> None:
    tenant.refuse()
    for _ in range(5):
        with pytest.raises(OSError):
            connect(tenant)
    tenant.refuse(times=0)
    assert connect(tenant).call()[0] == 200
    assert tenant.refused == 5


def test_idle_connections_are_closed(tenant: Tenant) -> None:
    used = Connection(tenant)
    assert used.call()[0] == 200
    unused = connect(tenant)
    tenant.close_idle()
    assert used.sock.recv(1) == b""
    assert unused.sock.recv(1) == b""
    for connection in (used, unused):
        with pytest.raises(OSError):
            connection.call()
    assert Connection(tenant).call()[0] == 200
    assert len(tenant.requests) == 2


def test_the_connection_of_a_request_under_way_is_not_closed(tenant: Tenant) -> None:
    idle = connect(tenant)

    def leave_no_way_to_write(request: Request) -> None:
        if request.method == "GET":
            tenant.close_idle()
            tenant.refuse(times=1)

    tenant.on_request(leave_no_way_to_write)
    busy = Connection(tenant)
    assert busy.call()[0] == 200
    assert busy.call("DELETE", f"{PHONES}/DPX")[0] == 404
    with pytest.raises(OSError):
        idle.call("DELETE", f"{PHONES}/DPX")
    with pytest.raises(OSError):
        connect(tenant)
    assert Connection(tenant).call("DELETE", f"{PHONES}/DPX")[0] == 404


def test_slowness(tenant: Tenant) -> None:
    tenant.populate(10)
    tenant.slow(connection=0.1, request=0.1, row=0.01)
    start = time.monotonic()
    assert len(get(tenant, USERS)) == 10
    assert 0.3 <= time.monotonic() - start < 3


def test_the_limiter(tenant: Tenant) -> None:
    tenant.limit(2, 60, "users")
    client = admin(tenant)
    assert client.get_users() == client.get_users() == []
    message = "Received 429 Too Many Requests"
    assert refused(client.get_users) == (429, 42901, message)
    assert client.get_phones() == []


def test_the_limiter_forgets_what_is_past(tenant: Tenant) -> None:
    tenant.limit(1, 0.3, "users")
    client = admin(tenant)
    assert client.get_users() == []
    time.sleep(0.35)
    assert client.get_users() == []


# Watching


def test_hooks(tenant: Tenant) -> None:
    phone_id = tenant.add_phone("ann")
    seen = []

    def activate(request: Request) -> None:
        with tenant.lock:
            tenant.phones[phone_id]["activated"] = True
        seen.append(("before", request.method, request.status))

    tenant.on_request(activate)
    tenant.after_request(lambda r: seen.append(("after", r.method, r.status)))
    assert admin(tenant).get_phone_by_id(phone_id)["activated"] is True
    assert seen == [("before", "GET", None), ("after", "GET", None)]
    assert refused(admin(tenant, skey="wrong").get_users)[0] == 401
    assert len(seen) == 2


def test_waiting(tenant: Tenant) -> None:
    thread = threading.Timer(0.05, admin(tenant).get_users, [300])
    thread.start()
    with tenant.lock:  # requests are seen to arrive all the same
        request = tenant.wait_for(method="GET", path="users$")
    assert request.params == {"limit": "300", "offset": "0"}
    thread.join()
    with pytest.raises(TimeoutError, match="Request 2"):
        tenant.wait_for(2, timeout=0.01)


# Starting and stopping


def test_exit_is_quick_whatever_hangs() -> None:
    tenant = Tenant()
    with tenant:
        tenant.fail("hang", path="users", times=None)
        silent = socket.create_connection(tenant.host.split(":"))  # type: ignore[arg-type]
        idle = Connection(tenant)
        assert idle.call(path=PHONES)[0] == 200
        hanging = Connection(tenant)
        thread = threading.Thread(
            target=pytest.raises,
            args=(OSError, hanging.call),
        )
        thread.start()
        tenant.wait_for(path="users")
        tenant.fail("drip", pause=60)
        dripping = Connection(tenant)
        dripping.ask(path=PHONES)
        assert dripping.getresponse().read(1) == b"{"
        phone_id = tenant.add_phone("ann")
        fault = tenant.fail("hold", method="DELETE")
        held = Connection(tenant)
        held.ask("DELETE", f"{PHONES}/{phone_id}")
        assert fault.held.wait(5)
        tenant.slow(request=60)
        slow = Connection(tenant)
        slow.request("GET", PHONES)
        tenant.wait_for(5)
        start = time.monotonic()
    assert time.monotonic() - start < 0.5
    thread.join(1)
    assert not thread.is_alive()
    assert tenant.requests[0].status == 200
    assert [request.status for request in tenant.requests[1:]] == [None] * 4
    assert tenant.phone(phone_id) is not None
    assert not tenant._threads
    assert not tenant.ca_certs.exists()
    silent.close()


def test_clients_that_go_away_leave_no_trace(
    tenant: Tenant, capfd: pytest.CaptureFixture[str]
) -> None:
    address = tenant.host.split(":")
    for junk in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"):
        with socket.create_connection(address) as sock:  # type: ignore[arg-type]
            sock.sendall(junk)
    tenant.slow(request=0.05)
    leaving = Connection(tenant)
    leaving.ask()
    tenant.wait_for()
    leaving.close()
    tenant.fail("drip")
    dripping = Connection(tenant)
    dripping.ask()
    assert dripping.getresponse().read(1) == b"{"
    dripping.close()
    tenant.fail("hang", times=None)
    hanging = Connection(tenant)
    hanging.ask()
    tenant.wait_for(3)
    hanging.close()
    assert eventually(lambda: not tenant._threads)
    assert [request.status for request in tenant.requests[1:]] == [None, None]
    assert capfd.readouterr() == ("", "")


def test_tenants_side_by_side() -> None:
    with Tenant() as one, Tenant() as other:
        one.add_user("ann")
        assert len(get(one, USERS)) == 1
        assert get(other, USERS) == []


def test_it_runs_by_itself() -> None:
    command = [sys.executable, "-m", "tests.simulation.tenant", "--users", "3"]
    root = Path(__file__).parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, cwd=root
    ) as child:
        lines = [child.stdout.readline() for _ in range(4)]  # type: ignore[union-attr]
        settings = dict(line[len("export ") :].strip().split("=", 1) for line in lines)
        host, port = settings["DUO_HOST"].split(":")
        client = duo_client.Admin(
            settings["DUO_IKEY"],
            settings["DUO_SKEY"],
            host,
            port=int(port),
            ca_certs=settings["DUO_CA_CERTS"],
            timeout=5,
        )
        assert len(client.get_users()) == 10
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
    assert not Path(settings["DUO_CA_CERTS"]).exists()
