"""What the other tests rely on in the simulated tenant."""

from __future__ import annotations

import email.utils
import http.client
import json
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duo_client
import duo_client.client
import pytest

from tests.simulation.tenant import IKEY, MISSING, SKEY, Request, Tenant, cast

pytestmark = [
    # duo_client makes connections in a way that newer Pythons warn of,
    pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS:DeprecationWarning"),
    # and leaves them open after an error; so do some tests here.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

USERS = "/admin/v1/users"
PHONES = "/admin/v1/phones"
FIVE_MINUTES = 300


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
    data = error.data if isinstance(error.data, dict) else json.loads(error.data)
    assert data["stat"] == "FAIL"
    return error.status, data["code"], str(error)


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
        date = email.utils.formatdate() if date is None else date
        auth = duo_client.client.sign(
            *(IKEY, SKEY, method, "localhost", path, date, 5, {}), body=""
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
        ({"skey": SKEY[::-1]}, 40103, "Invalid signature in request credentials"),
        (
            {"ikey": IKEY[::-1]},
            *(40102, "Invalid integration key in request credentials"),
        ),
        ({"sig_version": 2}, 40103, "Invalid signature in request credentials"),
    ],
)
def test_wrong_credentials_are_refused(
    tenant: Tenant, how: dict[str, Any], code: int, message: str
) -> None:
    assert refused(admin(tenant, **how).get_users) == (
        *(401, code),
        f"Received 401 {message}",
    )
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
    assert connection.call(date=date)[0] == connection.call(date=date)[0] == 200
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
    assert phone["platform"] == "Generic Smartphone"
    assert (phone["activated"], phone["name"], phone["last_seen"]) == (False, "", "")
    assert phone["capabilities"] == ["sms"]
    assert phone["model"] is None
    assert "tampered" not in phone
    assert bob["phones"] is None
    assert (bob["alias2"], bob["alias3"]) == ("bobby", None)
    assert client.get_user_by_id(user_id) == bob
    assert client.get_phones() == [client.update_phone(phone_id)] == [phone]


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
    tenant.add_user("ann", **fields)
    tenant.add_phone("bob", "ann")
    (shared,) = get(tenant, PHONES)
    if not phones:
        tenant.users[shared["users"][1]["user_id"]]["phones"].clear()
    (ann, bob), (shared,) = get(tenant, USERS), get(tenant, PHONES)
    assert [user.get("is_enrolled") for user in (ann, bob)] == [enrolled, True]
    assert [user.get("is_enrolled") for user in shared["users"]] == [True, enrolled]
    tenant.phones.clear()
    assert get(tenant, USERS)[1]["is_enrolled"] is False


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
    for call in (client.get_phone_by_id, client.update_phone):
        assert refused(call, phone_id) == (
            404,
            40401,
            "Received 404 Resource not found",
        )


@pytest.mark.parametrize(
    ("delete_status", "gone_status"), [(200, 200), (204, 204), (200, 204), (204, 404)]
)
def test_deleting(tenant: Tenant, delete_status: int, gone_status: int) -> None:
    assert (tenant.delete_status, tenant.gone_status) == (200, 200)
    tenant.delete_status, tenant.gone_status = delete_status, gone_status
    deleted, gone, kept = (PHONES + "/" + tenant.add_phone() for _ in range(3))
    del tenant.phones[gone.rpartition("/")[2]]
    connection = Connection(tenant)

    def answer(method: str, path: str) -> tuple[int, Any]:
        status, document = connection.call(method, path)
        return status, document and document.get("code", document.get("response"))

    answers = {200: (200, ""), 204: (204, None), 404: (404, 40401)}
    assert answer("DELETE", deleted) == answers[delete_status]
    for path in (deleted, gone):
        assert answer("DELETE", path) == answers[gone_status]
        assert answer("GET", path) == answer("POST", path) == answers[404]
    assert answer("DELETE", PHONES + "/DPX") == answers[404]
    assert [PHONES + "/" + phone_id for phone_id in tenant.phones] == [kept]
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
    ("path", "params", "rows", "metadata"),
    [
        (USERS, {}, 100, {"total_objects": 310, "next_offset": 100}),
        (USERS, {"limit": "300"}, 300, {"total_objects": 310, "next_offset": 300}),
        (
            USERS,
            {"limit": "300", "offset": "300"},
            *(10, {"total_objects": 310, "prev_offset": 0}),
        ),
        (USERS, {"offset": "999"}, 0, {"total_objects": 310, "prev_offset": 899}),
        (PHONES, {"limit": "500"}, 248, {"total_objects": 248}),
    ],
)
def test_pages(
    tenant: Tenant, path: str, params: dict[str, str], rows: int, metadata: Any
) -> None:
    tenant.populate(310)
    response, found = page(tenant, path, **params)
    assert (len(response), found) == (rows, metadata)
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
    assert [u["username"] for u in client.get_users_by_name("ANN@example.com")] == [
        "Ann"
    ]


LOOK_UPS = {"username": "bob", "username_list": '["bob", "cleo", "dan"]'}


@pytest.mark.parametrize("name", LOOK_UPS)
@pytest.mark.parametrize("offset", ["0", "1", "9"])
def test_a_look_up_has_one_page_unless_the_names_are_ignored(
    tenant: Tenant, name: str, offset: str
) -> None:
    users = ["ann", "bob", "cleo", "dan"]
    for user in users:
        tenant.add_user(user)
    found = users[1:2] if name == "username" else users[1:]
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
    first, second = Tenant(clock=lambda: 1e9), Tenant(clock=lambda: 1e9)
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


def test_the_cast() -> None:
    tenant = Tenant()
    cast(tenant, 1_700_000_000.5)
    names = {
        tenant.users[phone["users"][0]]["username"]: phone["name"]
        for phone in tenant.phones.values()
    }
    assert names == {
        "ann": "",
        "bob": "1699996400",
        "cleo": "1699999760",
        "dan": "Dan's spare",
        "eve": "iPhone",
        "fay": "1699992800",
    }


# Faults


@pytest.mark.parametrize(
    ("kind", "how", "error", "deleted", "status"),
    [
        ("status", {}, "503 Service Unavailable", False, 503),
        ("status", {"status": 401}, "401 Missing request credentials", False, 401),
        ("status", {"status": 502}, "502 Bad Gateway", False, 502),
        (
            "status",
            {"status": 400, "code": 40003, "message": "No", "message_detail": "why"},
            *(r"400 No \(why\)", False, 400),
        ),
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
    client.timeout = 0.2 if kind == "hang" else 5
    expected = RuntimeError if isinstance(error, str) else error
    # In Python 3.9, a socket that times out raises another error.
    types = (expected, socket.timeout) if kind == "hang" else expected
    with pytest.raises(types, match=error if isinstance(error, str) else None):
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
    with pytest.raises(KeyError):
        tenant.fail("reset")


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


def test_slowness(tenant: Tenant) -> None:
    tenant.populate(10)
    tenant.slow(connection=0.1, request=0.1, row=0.01)
    start = time.monotonic()
    assert len(get(tenant, USERS)) == 10
    assert 0.3 <= time.monotonic() - start < 3


def test_the_limiter(tenant: Tenant) -> None:
    tenant.limit(2, 0.3, "users")
    client = admin(tenant)
    start = time.monotonic()
    assert client.get_users() == client.get_users() == []
    message = "Received 429 Too Many Requests"
    assert refused(client.get_users) == (429, 42901, message)
    assert client.get_phones() == []
    time.sleep(max(0, start + 0.35 - time.monotonic()))
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
        tenant.slow(request=60)
        slow = Connection(tenant)
        slow.request("GET", PHONES)
        tenant.wait_for(4)
        start = time.monotonic()
    assert time.monotonic() - start < 0.5
    thread.join(1)
    assert not thread.is_alive()
    assert [request.status for request in tenant.requests] == [200, None, None, None]
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
    deadline = time.monotonic() + 2
    while tenant._threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not tenant._threads
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
        keys = settings["DUO_IKEY"], settings["DUO_SKEY"], host
        client = duo_client.Admin(
            *keys, port=int(port), ca_certs=settings["DUO_CA_CERTS"], timeout=5
        )
        assert len(client.get_users()) == 10
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == 0
    assert not Path(settings["DUO_CA_CERTS"]).exists()
