"""What is asked for on the command line and in the environment."""

from __future__ import annotations

import base64
import itertools
import os
import platform
import re
import shlex
import socket
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duo_client
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import duo_phone_cleanup
from tests.simulation.tenant import IKEY, SKEY, Tenant
from tests.support import MINUTE, NOW, STUCK, Result, assert_no_secret, usual

Runs = Callable[..., Result]
"""The fixture `run`, with variables from a dictionary, too."""

TOKEN = "Zx7Qw9Kp3Vb5Jt8Lc4Rd6"
"""Looks like a secret key."""


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    return f"DUO_{name.upper()}"


@pytest.fixture(autouse=True)
def _in_a_folder_with_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder has what the command lines below name."""
    monkeypatch.chdir(tmp_path)
    Path("key").write_text(SKEY + "\n")
    Path("wrong-key").write_text(SKEY[::-1])
    Path("text").write_text("text\n")
    for path in tmp_path.iterdir():
        path.chmod(0o600)


# What the settings do, and which of two counts


def status(_: Tenant, result: Result) -> int:
    return result.status


def left(tenant: Tenant, _: Result) -> int:
    return len(tenant.phones)


def tagged(tenant: Tenant, _: Result) -> int:
    return sum(bool(phone["name"]) for phone in tenant.phones.values())


def out(_: Tenant, result: Result) -> str:
    return result.out[:1]


def journals(_: Tenant, __: Result) -> list[str]:
    """The names of those that there are; they are removed."""
    found = sorted(Path().glob("*.jsonl"))
    for path in found:
        path.unlink()
    return [path.name for path in found]


def told(_: Tenant, result: Result) -> str:
    """Nothing, what was done, or every step: then requests as well."""
    if "/admin/v1/" in result.err:
        return "steps"
    if result.err:
        return "done"
    return "nothing"


class Setting(NamedTuple):
    """A setting, and two values of it that show in what a run leaves behind."""

    name: str
    seen: Callable[[Tenant, Result], Any]
    values: dict[str, Any]
    """What is seen with each of them."""
    default: Any
    """What is seen where it is not set."""
    junk: str = "junk"


TABLE = [
    Setting("skey", status, {SKEY: 0, SKEY[::-1]: 1}, 2, "two words"),
    Setting("skey_file", status, {"key": 0, "wrong-key": 1}, 2, "none"),
    Setting("ikey", status, {IKEY: 0, "DI": 1}, 2, "two words"),
    Setting("host", status, {"{host}": 0, "localhost:1": 1}, 2, "a b"),
    Setting("grace_period", left, {"20": 4, "120": 5}, 3),
    Setting("force", left, {"yes": 3, "no": 5}, 3),
    Setting("dry_run", left, {"yes": 5, "no": 3}, 3),
    Setting("max_deletions", left, {"1": 5, "None": 3}, 3),
    Setting("untag", tagged, {"yes": 2, "no": 3}, 3),
    Setting("json", out, {"yes": "{", "no": ""}, ""),
    Setting("journal", journals, {"a.jsonl": ["a.jsonl"], "b.jsonl": ["b.jsonl"]}, []),
    Setting("timeout", status, {"5": 0, "0.02": 1}, 0),
    Setting("ca_certs", status, {"{ca}": 0, "other-ca": 1}, 1),
    Setting("verbose", told, {"1": "done", "2": "steps"}, "nothing"),
]
SHORT = {
    "skey": "-s",
    "ikey": "-i",
    "host": "-H",
    "grace_period": "-g",
    "force": "-f",
    "dry_run": "-n",
    "verbose": "-v",
}
SWITCHES = ["force", "dry_run", "untag", "json"]
TAKE_NO_VALUE = [*SWITCHES, "verbose"]
"""The settings whose options take no value."""
SETTINGS = [setting.name for setting in TABLE]
each_setting = pytest.mark.parametrize("setting", TABLE, ids=SETTINGS)
each_name = pytest.mark.parametrize("name", SETTINGS)


def ways(name: str, text: str) -> list[list[str]]:
    """The command lines that give a setting this value."""
    long = option(name)
    short = SHORT.get(name)
    if name == "verbose":
        return [[f"-{int(text) * 'v'}"], int(text) * [long]]
    if name in SWITCHES and text == "no":
        return [[option(f"no_{name}")]]
    if name in SWITCHES:
        return [[flag] for flag in (long, short) if flag]
    found = [[long, text], [f"{long}={text}"]]
    if short:
        found += [[short, text], [short + text]]
    return found


@pytest.fixture
def see(tenant: Tenant, run: Runs) -> Callable[..., Any]:
    """Run the program on the same few phones; give what is seen of a setting."""
    trustme.CA().cert_pem.write_to_path("other-ca")
    places = {"host": tenant.host, "ca": str(tenant.ca_certs)}

    def see(setting: Setting, *argv: str, **variables: str) -> Any:
        tenant.users.clear()
        tenant.phones.clear()
        tenant.add_phone("ann")
        tenant.add_phone("bob", name=STUCK)
        tenant.add_phone("cleo", name=str(NOW - 10 * MINUTE))
        tenant.add_phone("dan", name=str(NOW - 10 * MINUTE + 1))
        tenant.add_phone("eve", name=STUCK, activated=True)
        environment = {variable(setting.name): ""}
        if setting.name == "skey_file":
            environment["DUO_SKEY"] = ""
        if setting.name == "timeout":
            tenant.slow(row=0.05)
        for name, text in variables.items():
            environment[name] = text.format_map(places)
        words = [word.format_map(places) for word in argv]
        result = run(*words, **environment)
        assert result.status < 2 or setting.seen is status, result
        return setting.seen(tenant, result)

    return see


@each_setting
def test_each_option_and_variable_does_what_it_says(
    setting: Setting, see: Callable[..., Any]
) -> None:
    assert see(setting) == setting.default
    for text, seen in setting.values.items():
        assert see(setting, **{variable(setting.name): text}) == seen, text
        for way in ways(setting.name, text):
            assert see(setting, *way) == seen, way


def test_each_option_has_an_effect_that_the_table_shows() -> None:
    flags = [each.flag for each in duo_phone_cleanup.ALL_OPTIONS]
    assert sorted(flags) == sorted(map(option, SETTINGS))
    for setting in TABLE:
        one, other = setting.values.values()
        assert one != other


@each_setting
def test_an_option_beats_the_variable(
    setting: Setting, see: Callable[..., Any]
) -> None:
    for text, seen in setting.values.items():
        way = ways(setting.name, text)[0]
        for unused in (*setting.values, setting.junk):
            assert see(setting, *way, **{variable(setting.name): unused}) == seen


def test_either_source_of_the_key_as_an_option_beats_both_as_variables(
    run: Runs,
) -> None:
    both = {"DUO_SKEY_FILE": "none", "DUO_SKEY": "two words"}
    assert run("--skey", SKEY, **both).status == 0
    assert run("--skey-file", "key", **both).status == 0


@pytest.mark.parametrize(
    ("words", "begin"), [("y yes t true on 1", "{"), ("n no f false off 0", "")]
)
def test_words_for_yes_and_no(run: Runs, words: str, begin: str) -> None:
    for word in words.split():
        for spelled in {word, word.upper(), word.title()}:
            result = run(DUO_JSON=spelled)
            assert (result.status, result.out[:1]) == (0, begin), spelled


# What is wrong is said in one line


def assert_usage_error(tenant: Tenant, result: Result, *names: str) -> None:
    """One line that names the settings, by option and variable; nothing else done."""
    assert (result.status, result.out) == (2, ""), result
    assert re.fullmatch("duo_phone_cleanup: .+\n", result.err), result
    for name in names:
        # Not merely the start of another name, as --skey is of --skey-file.
        assert re.search(rf"{option(name)}(?![\w-])", result.err), result
        assert re.search(rf"{variable(name)}(?!\w)", result.err), result
    assert tenant.requests == []


BAD_NUMBERS = ["junk", "-1", "1.5", "0x10", "1_000", "10 20", "\u0663", " ", "9" * 5000]
BAD_WORDS = ["junk", "2", "-1", "yess", "yes no", "none", "ye\u017f", " "]
BAD_HOSTS = [
    "a b.example",
    "a..example",
    "example.",
    "api.example:",
    "api.example:0",
    "api.example:65536",
    "ftp://api.example",
    "https://me@api.example/",
    "api.example?x",
    "[::1]",
    "api.example\napi.example",
    # without a dot
    "localhosts",
    TOKEN,
    f"https://{TOKEN}/",
    f"{TOKEN}:443",
]
BAD_FILES = ["none", ".", "key/key", "empty", "binary"]
BAD_SECONDS = [bad for bad in BAD_NUMBERS if bad != "1.5"]
PATHS_SHOWN = ["journal", "ca_certs"]
"""The settings whose values are named: a quoted ~, or a typing error, is then seen."""
BAD: dict[str, list[str]] = {
    "skey": ["two words", "k\u00e9y", "a\tb", "a\x00b", "\udcff", " ", "\n"],
    "skey_file": [*BAD_FILES, "blank", "two-lines", "utf-16"],
    "ikey": ["two words", "k\u00e9y", "a\nb", "\udcff", " "],
    "host": BAD_HOSTS,
    "grace_period": BAD_NUMBERS,
    "force": BAD_WORDS,
    "dry_run": BAD_WORDS,
    "max_deletions": [*BAD_NUMBERS, "all", "non", "nonesuch", "no"],
    "untag": BAD_WORDS,
    "json": BAD_WORDS,
    "journal": [".", "none/journal", "key/journal"],
    "timeout": [*BAD_SECONDS, "0", "0.0", "1,5", "."],
    "ca_certs": [*BAD_FILES, "key", "HTTP", "disable"],
    "verbose": [*BAD_NUMBERS, "v", "yes"],
}


@each_name
def test_a_bad_value_is_a_usage_error_that_does_not_repeat_it(
    tenant: Tenant, run: Runs, name: str
) -> None:
    """But for a path, which may well be shown."""
    for file, content in {
        "empty": b"",
        "blank": b" \n",
        "binary": bytes(range(256)),
        "two-lines": f"{SKEY}\n{SKEY}\n".encode(),
        "utf-16": SKEY.encode("utf-16"),
    }.items():
        Path(file).write_bytes(content)
        Path(file).chmod(0o600)
    unset = {}
    if name == "skey_file":
        unset["DUO_SKEY"] = ""
    for bad in BAD[name]:
        results = [run(**{**unset, variable(name): bad})]
        if name not in TAKE_NO_VALUE:
            results.append(run(f"{option(name)}={bad}", **unset))
        for result in results:
            assert_usage_error(tenant, result, name)
            if name in PATHS_SHOWN:
                assert f": {bad}: " in result.err
            elif len(bad) >= 5:
                assert bad.lower() not in result.err.lower()
            # No piece of a key in a file that is none, not even a byte of it.
            assert SKEY[:4] not in result.err
            assert "0x" not in result.err


@each_name
def test_an_option_with_no_value_or_one_too_many_is_named_with_its_variable(
    tenant: Tenant, run: Runs, name: str
) -> None:
    if name in TAKE_NO_VALUE:
        assert_usage_error(tenant, run(f"{option(name)}="), name)
        return
    assert_usage_error(tenant, run(option(name)), name)
    assert_usage_error(tenant, run(f"{option(name)}=", DUO_SKEY=""), name)


def test_what_is_missing_is_named(tenant: Tenant, run: Runs) -> None:
    result = run("ann", DUO_IKEY="", DUO_SKEY="")
    assert_usage_error(tenant, result, "ikey", "skey")
    assert "DUO_HOST" not in result.err
    # A file of variables that are not exported sets nothing.
    assert ". If they are in a file: set -a; . FILE (see --help)" in result.err


def test_help_and_version_take_no_value(tenant: Tenant, run: Runs) -> None:
    for flag in ("--help", "--version"):
        result = run(f"{flag}={TOKEN}")
        assert_usage_error(tenant, result)
        assert f" error: {flag}: takes no value (see --help)\n" in result.err


def test_a_negative_number_is_a_bad_value(tenant: Tenant, run: Runs) -> None:
    """Not an option that there is not."""
    for words in (["-g-5"], ["--grace-period", "-1.5"], ["ann", "-g", "-5", "bob"]):
        result = run(*words)
        assert_usage_error(tenant, result, "grace_period")
        assert " --grace-period (DUO_GRACE_PERIOD): expected a whole" in result.err


def test_two_sources_of_the_key_at_one_level_are_a_usage_error(
    tenant: Tenant, run: Runs
) -> None:
    for result in (
        run("--skey-file", "key", "-s", SKEY, DUO_SKEY=""),
        run(DUO_SKEY=SKEY, DUO_SKEY_FILE="key"),
    ):
        assert_usage_error(tenant, result, "skey", "skey_file")


# A file that is wrong is named


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("journal", "~/duo.jsonl", "its folder is missing"),
        ("journal", "none/duo.jsonl", "its folder is missing"),
        ("journal", ".", "Is a directory"),
        ("journal", "text/duo.jsonl", "Not a directory"),
        ("journal", "/dev/null", "expected a regular file (--json serves a pipe)"),
        ("ca_certs", "~/ca.pem", "No such file or directory"),
        ("ca_certs", ".", "expected a regular file"),
        ("ca_certs", "text", "no certificate or crl found"),
        ("ca_certs", "a\nb", "No such file or directory"),
    ],
)
def test_a_file_that_is_wrong_is_named(
    tenant: Tenant, run: Runs, name: str, path: str, reason: str
) -> None:
    shown = path.replace("\n", "\\n")
    told = f"{option(name)} ({variable(name)}): {shown}: {reason} (see --help)\n"
    for result in (run(option(name), path), run(**{variable(name): path})):
        assert_usage_error(tenant, result, name)
        assert result.err == f"duo_phone_cleanup: error: {told}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another account")
@pytest.mark.parametrize("name", PATHS_SHOWN)
@pytest.mark.parametrize(
    ("uid", "folder_mode", "owner"),
    [
        pytest.param(0, 0o755, " (it belongs to root)", id="a name"),
        pytest.param(54321, 0o755, "", id="a number alone"),
        pytest.param(0, 0o700, "", id="a closed folder"),
    ],
)
def test_the_owner_of_a_file_without_permission_is_named(
    *, tenant: Tenant, run: Runs, name: str, uid: int, folder_mode: int, owner: str
) -> None:
    """It may be root's, from a run by hand, where cron's is another account."""
    tenant.ca_certs.parent.chmod(0o755)
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        Path(base).chmod(0o755)
        folder = Path(base, "folder")
        folder.mkdir(folder_mode)
        path = folder / "file"
        path.touch(0o600)
        os.chown(path, uid, uid)
        os.seteuid(65534)
        try:
            result = run(**{variable(name): str(path)})
        finally:
            os.seteuid(0)
    assert_usage_error(tenant, result, name)
    assert result.err.endswith(f"): {path}: Permission denied{owner} (see --help)\n")


def test_wrong_settings_are_found_before_the_journal_is_opened(
    tenant: Tenant, run: Runs, tmp_path: Path
) -> None:
    """A journal that exists is not touched, either; nor by a dry run."""
    new = tmp_path / "new.jsonl"
    old = tmp_path / "old.jsonl"
    old.write_text('{"torn')
    os.utime(old, (1, 1))
    for path in (new, old):
        for wrong in (["-g", "soon"], ["--grace", "5"], ["--ca-certs", "/none"]):
            assert_usage_error(tenant, run("--journal", str(path), *wrong))
        assert_usage_error(tenant, run("--journal", str(path), HTTPS_PROXY="socks://h"))
        assert run("--dry-run", "--journal", str(path)).status == 0
        tenant.requests.clear()
    assert not new.exists()
    assert (old.read_text(), old.stat().st_mtime) == ('{"torn', 1)


# The proxy


@pytest.mark.parametrize(
    "proxy",
    [
        f"socks5://me:{TOKEN}@h:1",
        f"https://{TOKEN}@h",
        f"h:{TOKEN}",
        "http://:3128",
        "http://proxy:65536",
        "http://[::1:3128",
        f"http://me:{TOKEN}@",
        f"http://me:{TOKEN}@127.0.0.1:{TOKEN}",
        # What follows these in a password is no part of the host.
        f"http://{TOKEN}#pass@proxy",
        f"http://{TOKEN}/pass@proxy",
        f"http://{TOKEN}?pass@proxy",
    ],
)
def test_a_malformed_proxy_is_called_that(
    tenant: Tenant, run: Runs, proxy: str
) -> None:
    result = run(HTTPS_PROXY=proxy)
    assert_usage_error(tenant, result)
    assert "HTTPS_PROXY: expected http://[USER:PASS@]HOST[:PORT] " in result.err
    assert "--host" not in result.err
    assert TOKEN not in result.err


def test_a_proxy_that_repeats_its_request(run: Runs) -> None:
    """Nothing of a login is shown. The end of a line from Windows is no part of it."""
    login = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    said: list[bytes] = []

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        listener.close()  # it is tried again in vain
        with connection, connection.makefile("rb") as request:
            said.extend(iter(request.readline, b"\r\n"))
            (header,) = [line for line in said if line.startswith(b"Proxy-")]
            connection.sendall(b"HTTP/1.1 407 " + header + b"\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=[listener], daemon=True)
        thread.start()
        _, port = listener.getsockname()
        result = run("-vv", HTTPS_PROXY=f"http://me:{TOKEN}@127.0.0.1:{port}\r")
        thread.join(20)
    assert f"Proxy-Authorization: Basic {login}\r\n".encode() in said
    assert result.status == 1
    assert " 407 Proxy-Authorization: Basic ...: " in result.err
    assert login not in result.err
    assert TOKEN not in result.err


# What is nearly right is told what it should have been


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--dryrun", "--dry-run"),
        ("--dry_run", "--dry-run"),
        ("--no-dryrun", "--no-dry-run"),
        ("--max-deletion=5", "--max-deletions"),
        (f"--skye={TOKEN}", "--skey"),
        ("--versoin", "--version"),
        ("-dry-run", "--dry-run"),
        ("-skey", "--skey"),
        (f"--SKEY={TOKEN}", ""),
        (f"--{TOKEN}", ""),
        (f"-{TOKEN}", ""),
        (f"-k {TOKEN}", ""),
        # near to what is something else
        ("--users=ann", ""),
        ("--quiet", ""),
        # an abbreviation
        ("--sk", ""),
        ("--grace", ""),
    ],
)
def test_a_mistyped_option_gets_a_suggestion(
    tenant: Tenant, run: Runs, word: str, meant: str
) -> None:
    result = run("ann", word)
    assert_usage_error(tenant, result)
    question = ""
    if meant:
        question = f": did you mean {meant}?"
    told = f"duo_phone_cleanup: error: argument 2 is not an option{question}"
    assert result.err == f"{told} (see --help)\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["-vv="],
        ["-s="],
        [f"-n={TOKEN}"],
        [f"-v{TOKEN}"],
        [f"-nk{TOKEN}"],
        [f"-skey={TOKEN}"],
        ["-skey-file", TOKEN],
        ["-hots", TOKEN],
        ["-force"],
        ["-help"],
        [f"--json {TOKEN}"],
        [f"--no-skey={TOKEN}"],
        ["--skey", "--verbose", TOKEN],
    ],
    ids=" ".join,
)
def test_what_argparse_might_take_for_an_option_is_none(
    tenant: Tenant, run: Runs, argv: list[str]
) -> None:
    """A long name with one dash, or a switch with a value, however empty."""
    result = run(*argv)
    assert_usage_error(tenant, result)
    assert TOKEN not in result.err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DUO_DRYRUN", "DUO_DRY_RUN"),
        ("DUO_GRACE_PEROID", "DUO_GRACE_PERIOD"),
        ("DUO_MAX_DELETION", "DUO_MAX_DELETIONS"),
        ("DUO_MAX_DELETES", "DUO_MAX_DELETIONS"),
        ("DUO_IKEY_FILE", "DUO_SKEY_FILE"),
        ("DUO_CA_CERT", "DUO_CA_CERTS"),
        ("DUO_NO_FORCE", "DUO_FORCE"),
        ("DUO_VERBOSITY", "DUO_VERBOSE"),
        ("DUO_FROCE", "DUO_FORCE"),
        ("DUO_HOSTS", "DUO_HOST"),
    ],
)
def test_a_mistyped_variable_is_a_usage_error(
    tenant: Tenant, run: Runs, name: str, meant: str
) -> None:
    """With both names, and never its value. An empty one counts as unset."""
    tenant.add_phone("ann")
    result = run(**{name: TOKEN})
    assert_usage_error(tenant, result)
    told = f"unknown variable '{name}': did you mean {meant}? (see --help)\n"
    assert result.err == f"duo_phone_cleanup: error: {told}"
    assert run(**{name: ""}).status == 0


def test_variables_of_other_programs_are_left_alone(tenant: Tenant, run: Runs) -> None:
    """So are those that are too short to tell."""
    tenant.add_phone("ann")
    others = """
        DUO_AKEY DUO_HSOT DUO_API_HOST DUO_API_HOSTNAME DUO_INTEGRATION_KEY
        DUO_SECRET_KEY DUO_CLIENT_ID DUO_CLIENT_SECRET DUO_FAILMODE DUO_HTTP_PROXY
        DUO_REDIRECT_URI GRACE_PERIOD duo_dryrun
    """
    result = run("--json", **dict.fromkeys(others.split(), "yes"))
    assert (result.status, result.err) == (0, "")
    assert result.kinds == ["stamped"]


# Secrets


@pytest.mark.parametrize(
    ("argv", "variables", "where"),
    [
        ([SKEY], {}, "argument 1"),
        (["ann", "--", SKEY], {}, "argument 3"),
        (["-s", SKEY, SKEY], {}, "argument 3"),
        ([SKEY, "--skey-file", "key"], {"DUO_SKEY": ""}, "argument 1"),
        (["--journal", SKEY], {}, "--journal (DUO_JOURNAL)"),
        ([], {"DUO_JOURNAL": f"{SKEY}\r"}, "--journal (DUO_JOURNAL)"),
        (["--skey-file", "key"], {"DUO_JOURNAL": SKEY}, "--journal (DUO_JOURNAL)"),
        ([f"--ca-certs={SKEY}"], {}, "--ca-certs (DUO_CA_CERTS)"),
    ],
)
def test_the_key_pasted_in_the_wrong_place_is_not_shown(
    tenant: Tenant, run: Runs, argv: list[str], variables: dict[str, str], where: str
) -> None:
    """Nor is it looked up, or a file made of that name."""
    before = sorted(Path().iterdir())
    result = run(*argv, **variables)
    assert_usage_error(tenant, result)
    assert re.search(rf" error: {re.escape(where)}:? .*is the secret key", result.err)
    assert_no_secret(result)
    assert sorted(Path().iterdir()) == before


# As they may stand on a command line, the secret somewhere among them.
WORDS = ["-v", "ann", "--json", "-n", "--no-force", "-s", "--skey", "-i", "-H", "="]
WITH_TOKEN = [[f"--skye={TOKEN}"], [f"--{TOKEN}"], [f"-{TOKEN}"], [f"-{TOKEN} {TOKEN}"]]
WITH_TOKEN += [[f"{option(name)} {TOKEN}"] for name in SETTINGS]
NOT_SHOWN = sorted(set(SETTINGS).difference(PATHS_SHOWN))
WITH_TOKEN += [[f"{option(name)}={TOKEN}"] for name in NOT_SHOWN]
WITH_TOKEN += [[f"-{letter}{TOKEN}"] for letter in "siHgfnvkhx"]
WITH_TOKEN += [[f"-{letter}", TOKEN] for letter in "siHg"]


@pytest.mark.parametrize("complete", [True, False])
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_command_line_shows_a_secret(
    run: Runs, complete: bool, data: st.DataObject
) -> None:
    choice = [[""], ["-g", "5"], *([word] for word in WORDS), *WITH_TOKEN]
    names = data.draw(st.sets(st.sampled_from(NOT_SHOWN), max_size=1))
    if not complete:
        names.add("host")
        # Of a command line that is in order otherwise, a word by itself is a user,
        # whose name may well be shown.
        choice += [[TOKEN], [f"skey={TOKEN}"], ["--"], ["--", TOKEN]]
    words = data.draw(st.lists(st.sampled_from(choice), max_size=5))
    place = data.draw(st.integers(0, len(words)))
    words.insert(place, data.draw(st.sampled_from(WITH_TOKEN)))
    variables: dict[str, Any] = {variable(name): TOKEN for name in names}
    result = run(*itertools.chain(*words), **variables)
    shown = (result.out + result.err).lower()
    pieces = [TOKEN[at : at + 3].lower() for at in range(len(TOKEN) - 2)]
    assert not [piece for piece in pieces if piece in shown], result


# Users


@pytest.mark.parametrize(
    ("argv", "users"),
    [
        (["ann", "bob"], ["ann", "bob"]),
        (["--json", "ann", "-v", "bob", "-g", "5", "cleo"], ["ann", "bob", "cleo"]),
        (["--json", "--", "--odd", "-x"], ["--odd", "-x"]),
        (["--json", "ann", "--", "-n", "--no-json"], ["ann", "-n", "--no-json"]),
        (["--json", "--", "ann", "--", "bob"], ["ann", "--", "bob"]),
        (["a b", "", "\U0001f4f1", "D\\ann"], ["a b", "", "\U0001f4f1", "D\\ann"]),
    ],
)
def test_options_and_users_in_any_order(
    tenant: Tenant, run: Runs, argv: list[str], users: list[str]
) -> None:
    result = run(*argv, DUO_JSON="yes")
    assert [each["user"] for each in result.events[:-1]] == users
    assert set(result.kinds) == {"unknown_user"}
    assert result.status == 1
    assert len(tenant.requests) == 1


# The host


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "HTTPS://{}/",
        "http://{}",
        "  {}\n",
        "https://{}/admin/v1/users?limit=1",
        "{}/frame#top",
    ],
)
def test_a_pasted_host_is_reduced_to_its_name_and_port(
    tenant: Tenant, run: Runs, form: str
) -> None:
    for host in (tenant.host, tenant.host.upper()):
        assert run(DUO_HOST=form.format(host)).status == 0


@pytest.mark.parametrize("name", ["skey", "ikey"])
def test_white_space_round_a_key_is_no_part_of_it(
    tenant: Tenant, run: Runs, name: str
) -> None:
    key = tenant.environment()[variable(name)]
    for spaced in (f" {key}", f"{key}\n", f"\t{key} \r\n"):
        assert run(**{variable(name): spaced}).status == 0
        assert run(option(name), spaced, **{variable(name): ""}).status == 0


# The file of the secret key


@pytest.mark.parametrize("name", ["skey_file", "journal"])
@pytest.mark.parametrize(
    ("mode", "warned"), [(0o640, False), (0o604, True)], ids=["640", "604"]
)
def test_a_file_that_others_can_read_is_warned_of(
    *, run: Runs, tmp_path: Path, name: str, mode: int, warned: bool
) -> None:
    path = tmp_path / "file"
    path.write_text(f" {SKEY}\r\n")
    path.chmod(mode)
    variables = {variable(name): str(path)}
    if name == "skey_file":
        variables["DUO_SKEY"] = ""
    result = run(**variables)
    told = ""
    if warned:
        file = f"{option(name)} ({variable(name)})"
        told = f"warning: others can read the file of {file}\n"
    assert (result.status, result.err) == (0, told)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_key_may_come_through_a_pipe(run: Runs) -> None:
    """As with --skey-file <(pass duo) in a shell."""
    reading, writing = os.pipe()
    os.write(writing, f"{SKEY}\n".encode())
    os.close(writing)
    result = run("--skey-file", f"/dev/fd/{reading}", DUO_SKEY="")
    os.close(reading)
    assert (result.status, result.err) == (0, "")


# Help


def test_the_help_fits_80_columns(run: Runs) -> None:
    result = run("--help", COLUMNS="80")
    assert (result.status, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert not re.search("[ \t]$", result.out, re.MULTILINE)
    for word in (
        "--no-force",
        "-s, --skey SKEY",
        "-g, --grace-period MINUTES",
        "[user ...]",
        "HTTPS_PROXY",
        "after about 17",
        "129, 130, 143",
        "Options override variables; an empty variable counts as unset.",
        "set up in Duo, so that they can start over.",
    ):
        assert word in usual(result.out), word
    assert "delete_phone" not in result.out, "that is for who reads the script"


def test_the_examples_of_the_help_can_be_run(
    tenant: Tenant, run: Runs, tmp_path: Path
) -> None:
    shown = run("--help", COLUMNS="80").out
    examples = re.findall(r"^  duo_phone_cleanup (.+?)  ", shown, re.MULTILINE)
    assert len(examples) == 4
    tenant.add_phone("ann", name=STUCK)
    tenant.add_user("bob")
    left = []
    for example in examples:
        result = run(*shlex.split(example), stdin="n\n")
        assert result.status == 0, result
        left.append(len(tenant.phones))
    assert left == [1, 1, 1, 0], "each does what is said beside it"
    assert (tmp_path / "duo.jsonl").exists()


def test_the_help_has_each_option_with_its_default(run: Runs) -> None:
    shown = usual(run("--help", COLUMNS="80").out)
    for each in duo_phone_cleanup.ALL_OPTIONS:
        told = usual(each.help)
        if each.default and each.flag != "--ca-certs":
            told += f" (default: {each.default})"
        assert shown.count(f"{told} [{each.variable}]") == 1
    assert " (default: 10) [DUO_GRACE_PERIOD]" in shown
    assert " (default: 100) [DUO_MAX_DELETIONS]" in shown
    assert " (default: 30) [DUO_TIMEOUT]" in shown


def test_the_version(run: Runs) -> None:
    """Also duo_client's, whose CA certificates are trusted, and Python's."""
    result = run("--version")
    assert (result.status, result.err) == (0, "")
    program = f"duo_phone_cleanup {duo_phone_cleanup.__version__}"
    library = f"duo_client {duo_client.__version__}"
    python = f"Python {platform.python_version()}"
    assert result.out == f"{program}, {library}, {python}\n"


@pytest.mark.parametrize("flag", ["-h", "--help", "--version"])
def test_help_looks_at_no_variable(tenant: Tenant, run: Runs, flag: str) -> None:
    for variables in (
        {variable(name): "" for name in SETTINGS},
        {variable(name): "two words" for name in SETTINGS},
        {"HTTPS_PROXY": "junk://", "DUO_GRACE_PEROID": "5"},
    ):
        result = run("ann", "-g", "junk", flag, **variables)
        assert (result.status, result.err) == (0, "")
        assert result.out
    assert tenant.requests == []
