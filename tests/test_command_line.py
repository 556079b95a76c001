"""What is asked for on the command line and in the environment."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import pwd
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import duo_client
import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import duo_phone_cleanup
from tests.simulation.tenant import IKEY, SKEY, Tenant
from tests.support import MINUTE, NOW, STUCK, Result, assert_no_secret, start, usual

Runs = Callable[..., Result]
"""The fixture `run`, with variables from a dictionary, too."""

SETTINGS = (
    "skey",
    "skey_file",
    "ikey",
    "host",
    "grace_period",
    "force",
    "dry_run",
    "max_deletions",
    "untag",
    "json",
    "journal",
    "timeout",
    "ca_certs",
    "verbose",
)
TOKEN = "Zx7Qw9Kp3Vb5Jt8Lc4Rd6"
"""Looks like a secret key."""


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    return f"DUO_{name.upper()}"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some command lines are made up: they may name a journal."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def files(tenant: Tenant, tmp_path: Path) -> dict[str, str]:
    """What {names} in the values below stand for."""
    (tmp_path / "key").write_text(SKEY + "\n")
    (tmp_path / "wrong-key").write_text(SKEY[::-1])
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other-ca"))
    for path in tmp_path.iterdir():
        path.chmod(0o600)
    return {"host": tenant.host, "ca": str(tenant.ca_certs), "tmp": str(tmp_path)}


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


class Value(NamedTuple):
    """A value of a setting, the command lines that give it, what is then seen."""

    text: str
    ways: list[list[str]]
    seen: Any


def value(text: str, seen: Any, long: str, short: str = "") -> Value:
    """Give a value in each way that an option takes one."""
    ways = [[long, text], [f"{long}={text}"]]
    if short:
        ways += [[short, text], [short + text]]
    return Value(text, ways, seen)


@dataclass
class Setting:
    """A setting, and two values of it that show in what a run leaves behind."""

    name: str
    seen: Callable[[Tenant, Result], Any]
    one: Value
    other: Value
    default: Any
    """What is seen where it is not set."""
    junk: str = "junk"
    others: tuple[str, ...] = ()
    """Variables that must not be set."""
    row_seconds: float = 0
    """How slow the tenant is."""


SKEY_SETTING = Setting(
    "skey",
    status,
    value(SKEY, 0, "--skey", "-s"),
    value(SKEY[::-1], 1, "--skey", "-s"),
    default=2,
    junk="two words",
)
MAX_DELETIONS = Setting(
    "max_deletions",
    left,
    value("1", 5, "--max-deletions"),
    value("none", 3, "--max-deletions"),
    default=3,
)
TABLE = [
    SKEY_SETTING,
    Setting(
        "skey_file",
        status,
        value("{tmp}/key", 0, "--skey-file"),
        value("{tmp}/wrong-key", 1, "--skey-file"),
        default=2,
        junk="{tmp}/none",
        others=("DUO_SKEY",),
    ),
    Setting(
        "ikey",
        status,
        value(IKEY, 0, "--ikey", "-i"),
        value("DI", 1, "--ikey", "-i"),
        default=2,
        junk="two words",
    ),
    Setting(
        "host",
        status,
        value("{host}", 0, "--host", "-H"),
        value("localhost:1", 1, "--host", "-H"),
        default=2,
        junk="a b",
    ),
    Setting(
        "grace_period",
        left,
        value("20", 4, "--grace-period", "-g"),
        value("120", 5, "--grace-period", "-g"),
        default=3,
    ),
    Setting(
        "force",
        left,
        Value("yes", [["--force"], ["-f"]], 3),
        Value("no", [["--no-force"]], 5),
        default=3,
    ),
    Setting(
        "dry_run",
        left,
        Value("yes", [["--dry-run"], ["-n"]], 5),
        Value("no", [["--no-dry-run"]], 3),
        default=3,
    ),
    MAX_DELETIONS,
    Setting(
        "untag",
        tagged,
        Value("yes", [["--untag"]], 2),
        Value("no", [["--no-untag"]], 3),
        default=3,
    ),
    Setting(
        "json",
        out,
        Value("yes", [["--json"]], "{"),
        Value("no", [["--no-json"]], ""),
        default="",
    ),
    Setting(
        "journal",
        journals,
        value("{tmp}/one.jsonl", ["one.jsonl"], "--journal"),
        value("{tmp}/other.jsonl", ["other.jsonl"], "--journal"),
        default=[],
        junk="{tmp}",
    ),
    Setting(
        "timeout",
        status,
        value("5", 0, "--timeout"),
        value("0.02", 1, "--timeout"),
        default=0,
        row_seconds=0.05,
    ),
    Setting(
        "ca_certs",
        status,
        value("{ca}", 0, "--ca-certs"),
        value("{tmp}/other-ca", 1, "--ca-certs"),
        default=1,
    ),
    Setting(
        "verbose",
        told,
        Value("1", [["-v"], ["--verbose"]], "done"),
        Value("2", [["-vv"], ["--verbose", "--verbose"]], "steps"),
        default="nothing",
    ),
]
each_setting = pytest.mark.parametrize(
    "setting", TABLE, ids=[setting.name for setting in TABLE]
)


@pytest.fixture
def see(tenant: Tenant, run: Runs, files: dict[str, str]) -> Callable[..., Any]:
    """Run the program on the same few phones; give what is seen of a setting."""

    def see(setting: Setting, *argv: str, **variables: str) -> Any:
        tenant.users.clear()
        tenant.phones.clear()
        tenant.slow(row=setting.row_seconds)
        tenant.add_phone("ann")
        tenant.add_phone("bob", name=STUCK)
        tenant.add_phone("cleo", name=str(NOW - 10 * MINUTE))
        tenant.add_phone("dan", name=str(NOW - 10 * MINUTE + 1))
        tenant.add_phone("eve", name=STUCK, activated=True)
        environment = {variable(setting.name): ""}
        for other in setting.others:
            environment[other] = ""
        for name, text in variables.items():
            environment[name] = text.format_map(files)
        words = [word.format_map(files) for word in argv]
        result = run(*words, **environment)
        assert result.status < 2 or setting.seen is status, result
        return setting.seen(tenant, result)

    return see


@each_setting
def test_each_option_and_variable_does_what_it_says(
    setting: Setting, see: Callable[..., Any]
) -> None:
    assert see(setting) == setting.default
    for value in (setting.one, setting.other):
        assert see(setting, **{variable(setting.name): value.text}) == value.seen, value
        for way in value.ways:
            assert see(setting, *way) == value.seen, way


@each_setting
def test_an_option_beats_the_variable(
    setting: Setting, see: Callable[..., Any]
) -> None:
    for value, unused in (
        (setting.one, setting.other.text),
        (setting.other, setting.one.text),
        (setting.one, setting.junk),
    ):
        seen = see(setting, *value.ways[0], **{variable(setting.name): unused})
        assert seen == value.seen, (value, unused)


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        (["--skey", SKEY], {"DUO_SKEY_FILE": "{tmp}/wrong-key"}),
        (["--skey", SKEY], {"DUO_SKEY_FILE": "{tmp}/none"}),
        (["--skey-file", "{tmp}/key"], {"DUO_SKEY": SKEY[::-1]}),
        (["--skey-file", "{tmp}/key"], {"DUO_SKEY": "two words"}),
        (["--skey", SKEY], {"DUO_SKEY_FILE": "{tmp}/none", "DUO_SKEY": "two words"}),
        ([], {"DUO_SKEY_FILE": "{tmp}/key", "DUO_SKEY": ""}),
        ([], {"DUO_SKEY_FILE": "", "DUO_SKEY": SKEY}),
    ],
)
def test_either_source_of_the_key_as_an_option_beats_both_as_variables(
    see: Callable[..., Any], argv: list[str], variables: dict[str, str]
) -> None:
    assert see(SKEY_SETTING, *argv, **variables) == 0


@pytest.mark.parametrize("value", ["none", "NONE", "None"])
def test_none_lifts_the_limit(see: Callable[..., Any], value: str) -> None:
    assert see(MAX_DELETIONS, DUO_MAX_DELETIONS=value) == 3
    assert see(MAX_DELETIONS, "--max-deletions", value, DUO_MAX_DELETIONS="0") == 3


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        pytest.param(["y", "yes", "t", "true", "on", "1"], "{", id="yes"),
        pytest.param(["n", "no", "f", "false", "off", "0"], "", id="no"),
    ],
)
def test_words_for_yes_and_no(run: Runs, words: list[str], begin: str) -> None:
    for word in words:
        for spelled in {word, word.upper(), word.title()}:
            result = run(DUO_JSON=spelled)
            assert (result.status, result.out[:1]) == (0, begin), spelled


def test_the_verbosity_counts(run: Runs) -> None:
    def lines(*argv: str, **variables: str) -> int:
        return len(run(*argv, **variables).err.splitlines())

    assert lines() == 0
    assert lines(DUO_VERBOSE="0") == 0
    once = lines("-v")
    assert once > 0
    assert lines("--verbose") == once
    assert lines(DUO_VERBOSE="1") == once
    assert lines("-v", DUO_VERBOSE="2") == once
    twice = lines("-vv")
    assert twice > once
    assert lines("-v", "-v") == twice
    assert lines(DUO_VERBOSE="2") == twice


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


BAD_NUMBERS = [
    "junk",
    "-1",
    "1.5",
    "ten",
    "1e1",
    "0x10",
    "1_000",
    "10m",
    "10 20",
    "nan",
    "inf",
    "\uff11\uff10",
    "\u0663",
    "\u00b2",
    "1\n2",
    " ",
    "\udcff",
    "9" * 5000,
]
BAD_WORDS = [
    "junk",
    "2",
    "-1",
    "yess",
    "yes no",
    "none",
    "enabled",
    "ye\u017f",
    "\uff59",
    " ",
]
BAD_HOSTS = [
    "a b.example",
    "a_b.example",
    "-a.example",
    "a-.example",
    "a..example",
    ".example",
    "example.",
    "a" * 64 + ".com",
    "api.example:",
    "api.example:0",
    "api.example:65536",
    "api.example:99999",
    "api.example:port",
    "api.example:1:2",
    "api.example:-1",
    "ftp://api.example",
    "https://",
    "https:///admin",
    "https://me@api.example/",
    "api.example?x",
    "api.example#x",
    "h\u00f6st.example",
    "api.example\\x",
    "[::1]",
    "::1",
    " ",
    "/",
    "api.example\napi.example",
    "\udcff",
    # without a dot
    "server",
    "server:443",
    "https://server/",
    "api-87654321",
    "localhosts",
    TOKEN,
    f"https://{TOKEN}/",
    f"{TOKEN}:443",
]
BAD_FILES = ["{tmp}/none", "{tmp}", "{tmp}/key/key", "{tmp}/empty", "{tmp}/binary"]
BAD_SECONDS = [bad for bad in BAD_NUMBERS if bad != "1.5"]
SWITCHES = ["force", "dry_run", "untag", "json"]
TAKE_NO_VALUE = [*SWITCHES, "verbose"]
"""The settings whose options take no value."""
PATHS_SHOWN = ["journal", "ca_certs"]
"""The settings whose values are named: a quoted ~, or a typing error, is then seen."""
BAD: dict[str, list[str]] = {
    "skey": ["two words", "k\u00e9y", "a\tb", "a\x00b", "\udcff", " ", "\n"],
    "skey_file": [*BAD_FILES, "{tmp}/blank", "{tmp}/two-lines", "{tmp}/utf-16"],
    "ikey": ["two words", "k\u00e9y", "a\nb", "\udcff", " "],
    "host": BAD_HOSTS,
    "grace_period": BAD_NUMBERS,
    "force": BAD_WORDS,
    "dry_run": BAD_WORDS,
    "max_deletions": [*BAD_NUMBERS, "all", "non", "nonesuch", "no"],
    "untag": BAD_WORDS,
    "json": BAD_WORDS,
    "journal": ["{tmp}", "{tmp}/none/journal", "{tmp}/key/journal"],
    "timeout": [*BAD_SECONDS, "0", "0.0", "1,5", "."],
    "ca_certs": [*BAD_FILES, "{tmp}/key", "HTTP", "DISABLE", "http", "disable"],
    "verbose": [*BAD_NUMBERS, "v", "yes"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_value_is_a_usage_error_that_does_not_repeat_it(
    tenant: Tenant, run: Runs, files: dict[str, str], tmp_path: Path, name: str
) -> None:
    """But for a path, which may well be shown."""
    for file, content in {
        "empty": b"",
        "blank": b" \n",
        "binary": bytes(range(256)),
        "two-lines": f"{SKEY}\n{SKEY}\n".encode(),
        "utf-16": SKEY.encode("utf-16"),
    }.items():
        (tmp_path / file).write_bytes(content)
        (tmp_path / file).chmod(0o600)
    unset = {}
    if name == "skey_file":
        unset["DUO_SKEY"] = ""
    for template in BAD[name]:
        bad = template.format_map(files)
        results = [run(**{**unset, variable(name): bad})]
        if name not in TAKE_NO_VALUE:
            results.append(run(f"{option(name)}={bad}", **unset))
        for result in results:
            assert_usage_error(tenant, result, name)
            if name in PATHS_SHOWN:
                assert f": {bad}: " in result.err
            elif len(bad) >= 4:
                assert bad.lower() not in result.err.lower()
            # No piece of a key in a file that is none, not even a byte of it.
            assert SKEY[:4] not in result.err
            assert "0x" not in result.err
    if name not in TAKE_NO_VALUE:
        assert_usage_error(tenant, run(option(name), "", **unset), name)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_option_with_no_value_or_one_too_many_is_named_with_its_variable(
    tenant: Tenant, run: Runs, name: str
) -> None:
    if name in TAKE_NO_VALUE:
        result = run(f"{option(name)}={TOKEN}")
    else:
        result = run(option(name))
    assert_usage_error(tenant, result, name)
    assert TOKEN not in result.err


@pytest.mark.parametrize(
    "missing",
    [["host"], ["ikey"], ["skey"], ["ikey", "skey"], ["host", "ikey", "skey"]],
)
def test_what_is_missing_is_named(
    tenant: Tenant, run: Runs, missing: list[str]
) -> None:
    result = run("ann", **{variable(name): "" for name in missing})
    assert_usage_error(tenant, result, *missing)
    for name in {"host", "ikey", "skey"}.difference(missing):
        assert variable(name) not in result.err
    # A file of variables that are not exported sets nothing.
    assert ". To load a file of variables: set -a; . FILE (see --help)" in result.err


@pytest.mark.parametrize("flag", ["--help", "--version"])
@pytest.mark.parametrize("text", ["x", "", TOKEN])
def test_help_and_version_take_no_value(
    tenant: Tenant, run: Runs, flag: str, text: str
) -> None:
    """Nor is there a variable for them."""
    result = run(f"{flag}={text}")
    assert_usage_error(tenant, result)
    told = f"error: {flag}: takes no value (see --help)\n"
    assert result.err == f"duo_phone_cleanup: {told}"


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["-g", "-5"], "grace_period"),
        (["-g-5"], "grace_period"),
        (["--grace-period", "-5"], "grace_period"),
        (["--grace-period", "-1.5"], "grace_period"),
        (["--max-deletions", "-1"], "max_deletions"),
        (["ann", "--max-deletions", "-100", "bob"], "max_deletions"),
        (["--timeout", "-0.5"], "timeout"),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_negative_number_is_a_bad_value(
    tenant: Tenant, run: Runs, argv: list[str], name: str
) -> None:
    """Not an option that there is not."""
    result = run(*argv)
    assert_usage_error(tenant, result, name)
    assert f"{option(name)} ({variable(name)}): expected " in result.err
    assert "expected a value" not in result.err


@pytest.mark.parametrize(
    ("argv", "variables"),
    [
        (["--skey", SKEY, "--skey-file", "{tmp}/key"], {}),
        (["--skey-file", "{tmp}/key", "-s", SKEY], {"DUO_SKEY": ""}),
        ([], {"DUO_SKEY": SKEY, "DUO_SKEY_FILE": "{tmp}/key"}),
    ],
)
def test_two_sources_of_the_key_at_one_level_are_a_usage_error(
    tenant: Tenant,
    run: Runs,
    files: dict[str, str],
    argv: list[str],
    variables: dict[str, str],
) -> None:
    words = [word.format_map(files) for word in argv]
    environment = {name: text.format_map(files) for name, text in variables.items()}
    result = run(*words, **environment)
    assert_usage_error(tenant, result, "skey", "skey_file")


# A file that is wrong is named


@pytest.mark.parametrize(
    ("name", "path", "reason"),
    [
        ("journal", "~/duo.jsonl", "No such file or directory"),
        ("journal", "none/duo.jsonl", "No such file or directory"),
        ("journal", ".", "Is a directory"),
        ("journal", "text/duo.jsonl", "Not a directory"),
        ("journal", "/dev/null", "expected a regular file (--json serves a pipe)"),
        ("ca_certs", "~/ca.pem", "No such file or directory"),
        ("ca_certs", ".", "expected a regular file"),
        ("ca_certs", "/dev/null", "expected a regular file"),
        ("ca_certs", "text", "no certificate or crl found"),
        ("ca_certs", "a\nb", "No such file or directory"),
    ],
)
def test_a_file_that_is_wrong_is_named(
    tenant: Tenant, run: Runs, tmp_path: Path, name: str, path: str, reason: str
) -> None:
    (tmp_path / "text").write_text("text\n")
    shown = path.replace("\n", "\\n")
    told = f"{option(name)} ({variable(name)}): {shown}: {reason} (see --help)\n"
    for result in (run(option(name), path), run(**{variable(name): path})):
        assert_usage_error(tenant, result, name)
        assert result.err == f"duo_phone_cleanup: error: {told}"


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Have no right to another account's files, as root has."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder(tenant: Tenant) -> Iterator[Path]:
    """A folder that every account can look into, unlike pytest's, with ca.pem in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(tenant.ca_certs, folder / "ca.pem")
        (folder / "ca.pem").chmod(0o644)
        yield folder


only_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make another account's file"
)


@only_root
@pytest.mark.parametrize("name", PATHS_SHOWN)
@pytest.mark.parametrize("uid", [1, 54321], ids=["a name", "a number alone"])
def test_the_owner_of_a_file_without_permission_is_named(
    tenant: Tenant, run: Runs, open_folder: Path, name: str, uid: int
) -> None:
    """It may be root's, from a run by hand, where cron's is another account."""
    path = open_folder / "file"
    path.touch(0o600)
    os.chown(path, uid, uid)
    settings = {"DUO_CA_CERTS": str(open_folder / "ca.pem"), variable(name): str(path)}
    with as_nobody():
        result = run(**settings)
    assert_usage_error(tenant, result, name)
    told = f"{path}: Permission denied"
    with contextlib.suppress(KeyError):
        told += f" (it belongs to {pwd.getpwuid(uid).pw_name})"
    assert result.err.endswith(f"): {told} (see --help)\n")


@only_root
@pytest.mark.parametrize("name", PATHS_SHOWN)
def test_a_file_in_a_folder_without_permission_is_named(
    tenant: Tenant, run: Runs, open_folder: Path, name: str
) -> None:
    """Whose it is cannot be seen there."""
    folder = open_folder / "folder"
    folder.mkdir(0o700)
    path = folder / "file"
    path.touch()
    settings = {"DUO_CA_CERTS": str(open_folder / "ca.pem"), variable(name): str(path)}
    with as_nobody():
        result = run(**settings)
    assert_usage_error(tenant, result, name)
    assert result.err.endswith(f"): {path}: Permission denied (see --help)\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
@pytest.mark.parametrize("name", PATHS_SHOWN)
def test_a_file_without_permission_is_named(
    tenant: Tenant, run: Runs, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "file"
    path.touch(0)
    result = run(option(name), str(path))
    assert_usage_error(tenant, result, name)
    told = f"{path}: Permission denied (it belongs to {path.owner()})"
    assert result.err.endswith(f"): {told} (see --help)\n")


def test_ca_certs_may_not_be_a_pipe(tenant: Tenant, tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with start(tenant, "--ca-certs", str(path)) as child:
        try:
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()
    result = Result(child.returncode, out, err)
    assert_usage_error(tenant, result, "ca_certs")
    assert f": {path}: expected a regular file " in err


def test_wrong_settings_are_found_before_the_journal_is_opened(
    tenant: Tenant, run: Runs, tmp_path: Path
) -> None:
    """Whichever comes first. A journal that exists is not touched, either."""
    new = tmp_path / "new.jsonl"
    old = tmp_path / "old.jsonl"
    old.write_text('{"torn')
    os.utime(old, (1, 1))
    for path in (new, old):
        for wrong in (["-g", "soon"], ["--grace", "5"], ["--ca-certs", "/none"]):
            words = ["--journal", str(path)]
            assert_usage_error(tenant, run(*words, *wrong))
            assert_usage_error(tenant, run(*wrong, *words))
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
        "a b",
        "http://proxy..corp:3128",
        "http://.corp",
        "http://corp.",
        "http://:3128",
        "http://proxy:0",
        "http://proxy:65536",
        "http://proxy:",
        "http://p:1:2",
        "http://[::1:3128",
        "http://::1:3128",
        f"http://me:{TOKEN}@",
        "http://a_b/c",
        f"http://me:{TOKEN}@[::g]:3128",
        f"http://me:{TOKEN}@127.0.0.1:{TOKEN}",
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


# What is nearly right is told what it should have been


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--dryrun", "--dry-run"),
        ("--dry_run", "--dry-run"),
        ("--no-dryrun", "--no-dry-run"),
        ("--grace", "--grace-period"),
        ("--grace=20", "--grace-period"),
        ("--max", "--max-deletions"),
        ("--dry", "--dry-run"),
        ("--no-dry", "--no-dry-run"),
        ("--time=5", "--timeout"),
        ("--vers", "--version"),
        ("--max-deletion=5", "--max-deletions"),
        ("--grace-periods", "--grace-period"),
        (f"--skye={TOKEN}", "--skey"),
        (f"--skey_file={TOKEN}", "--skey-file"),
        (f"--SKEY={TOKEN}", ""),
        ("--no-forse", "--no-force"),
        ("--jounral", "--journal"),
        ("-dry-run", "--dry-run"),
        ("-json", "--json"),
        ("-skey", "--skey"),
        ("-host", "--host"),
        (f"--{TOKEN}", ""),
        ("--xyzzy", ""),
        ("-x", ""),
        # near to nothing, or to what is something else
        ("--user", ""),
        ("--users=ann", ""),
        ("--limit=5", ""),
        ("--hostname", ""),
        ("--quiet", ""),
        ("--log", ""),
        ("--delete", ""),
    ],
)
def test_a_mistyped_option_gets_a_suggestion(
    tenant: Tenant, run: Runs, word: str, meant: str
) -> None:
    result = run("ann", word)
    assert_usage_error(tenant, result)
    if meant:
        assert f": did you mean {meant}? " in result.err
    else:
        assert "did you mean" not in result.err
    assert "argument 2 " in result.err
    assert TOKEN not in result.err


@pytest.mark.parametrize(
    "argv",
    [
        ["-n="],
        ["-v="],
        ["-f="],
        ["-h="],
        ["-vv="],
        ["-s="],
        ["-nv="],
        [f"-n={TOKEN}"],
        [f"-v={TOKEN}"],
        ["-n=yes"],
        ["-v=2"],
        ["-skey", TOKEN],
        ["-skey-file", TOKEN],
        ["-host", TOKEN],
        ["-ikey", TOKEN],
        [f"-skey={TOKEN}"],
        [f"-host={TOKEN}"],
        ["-grace-period", "5"],
        ["-force"],
        ["-help"],
        ["-version"],
        ["-verbose"],
        ["-json"],
        ["-dry-run"],
        ["-untag"],
        ["-timeout", "5"],
        ["-journal", TOKEN],
        ["-ca-certs", TOKEN],
        ["-no-force"],
        ["-skye", TOKEN],
        ["-seky", TOKEN],
        ["-hots", TOKEN],
        ["-untga"],
    ],
    ids=" ".join,
)
def test_a_long_name_with_one_dash_is_no_option(
    tenant: Tenant, run: Runs, argv: list[str]
) -> None:
    """As is a switch with a value, however empty. argparse has its own ideas of it."""
    result = run(*argv)
    assert_usage_error(tenant, result)
    assert TOKEN not in result.err


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DUO_GRACE_PEROID", "DUO_GRACE_PERIOD"),
        ("DUO_GRACEPERIOD", "DUO_GRACE_PERIOD"),
        ("DUO_MAX_DELETION", "DUO_MAX_DELETIONS"),
        ("DUO_MAX_DELETES", "DUO_MAX_DELETIONS"),
        ("DUO_DRYRUN", "DUO_DRY_RUN"),
        ("DUO_SKEYFILE", "DUO_SKEY_FILE"),
        ("DUO_CA_CERT", "DUO_CA_CERTS"),
        ("DUO_TIMEOUTS", "DUO_TIMEOUT"),
        ("DUO_JOURNALS", "DUO_JOURNAL"),
        ("DUO_VERBOSITY", "DUO_VERBOSE"),
        # other programs', and what is too short to tell
        ("DUO_AKEY", ""),
        ("DUO_API_HOST", ""),
        ("DUO_API_HOSTNAME", ""),
        ("DUO_IKEYS", ""),
        ("DUO_HOSTS", ""),
        ("DUO_INTEGRATION_KEY", ""),
        ("DUO_SECRET_KEY", ""),
        ("DUO_CLIENT_ID", ""),
        ("DUO_CLIENT_SECRET", ""),
        ("DUO_FAILMODE", ""),
        ("DUO_HTTP_PROXY", ""),
        ("DUO_REDIRECT_URI", ""),
        ("GRACE_PERIOD", ""),
        ("DUOGRACE_PERIOD", ""),
        ("duo_grace_period", ""),
    ],
)
def test_a_mistyped_variable_is_warned_of(
    tenant: Tenant, run: Runs, name: str, meant: str
) -> None:
    """With both names, and never its value."""
    result = run(**{name: TOKEN})
    assert (result.status, result.out) == (0, "")
    if meant:
        warning = f"warning: unknown variable '{name}': did you mean {meant}?"
        assert result.err == f"{warning}\n"
    else:
        assert result.err == ""
    assert tenant.requests


# Secrets


@pytest.mark.parametrize(
    "argv",
    [
        [f"--skye={TOKEN}"],
        [f"--skye {TOKEN}"],
        ["--skye", TOKEN],
        [f"--sk={TOKEN}"],
        ["--sk", TOKEN],
        [f"--no-skey={TOKEN}"],
        [f"-skey={TOKEN}", f"--{TOKEN}"],
        [f"--skey{TOKEN}"],
        [f"--{TOKEN}"],
        ["-skey", TOKEN, "-vv"],
        ["-skey-file", TOKEN],
        [f"-skey={TOKEN}", "-vv"],
        [f"-k{TOKEN}"],
        [f"-k={TOKEN}"],
        [f"-k {TOKEN}"],
        ["-k", TOKEN],
        [f"-v{TOKEN}"],
        [f"-vv{TOKEN}"],
        [f"-nk{TOKEN}"],
        [f"-{TOKEN}"],
        [f"--json={TOKEN}"],
        [f"--json {TOKEN}"],
        [f"--no-json={TOKEN}"],
        [f"--verbose={TOKEN}"],
        [f"--force={TOKEN}"],
        [f"--version={TOKEN}"],
        [f"--grace-period={TOKEN}"],
        ["-g", TOKEN],
        [f"-g{TOKEN}"],
        ["--timeout", TOKEN],
        ["--max-deletions", TOKEN],
        [f"-H{TOKEN}"],
        ["--host", TOKEN],
        [f"--host=https://{TOKEN}/"],
        ["--host", f"https://{TOKEN}@localhost/"],
        ["ann", "-v", f"--skye={TOKEN}", "bob"],
        ["-s", SKEY, "-k", TOKEN],
        ["--skey", "--verbose", TOKEN],
        ["--skey-file", TOKEN, "-s", TOKEN],
        ["--skey", f"{TOKEN} {TOKEN}"],
        ["--skey", f"{TOKEN}\u00e9"],
    ],
    ids=" ".join,
)
def test_a_mistyped_option_does_not_repeat_the_secret(
    tenant: Tenant, run: Runs, argv: list[str]
) -> None:
    result = run(*argv)
    assert_usage_error(tenant, result)
    assert TOKEN.lower() not in result.err.lower()


@pytest.mark.parametrize("form", ["{}", " {}\n", "https://{}/", "{}:443", "{}/admin"])
def test_the_key_pasted_as_the_host_is_not_shown(
    tenant: Tenant, run: Runs, form: str
) -> None:
    """Nor is it looked up, where others could see it."""
    text = form.format(SKEY)
    for result in (run("-vv", "--host", text), run("-vv", DUO_HOST=text)):
        assert_usage_error(tenant, result, "host")
        assert ": expected HOST[:PORT], such as api-12345678." in result.err
        assert_no_secret(result)
        assert SKEY.lower()[:5] not in result.err.lower()


@pytest.mark.parametrize(
    "argv",
    [["--sk", "5"], ["--grace", "5"], ["--dry"], ["--no-for"], ["--verb"]],
    ids=" ".join,
)
def test_options_cannot_be_abbreviated(
    tenant: Tenant, run: Runs, argv: list[str]
) -> None:
    assert_usage_error(tenant, run(*argv))


def test_the_place_of_an_unknown_option_is_told(tenant: Tenant, run: Runs) -> None:
    for argv in (["-v", "ann", f"-k{TOKEN}"], ["-v", "ann", f"-nk{TOKEN}"]):
        result = run(*argv)
        assert_usage_error(tenant, result)
        assert not re.search("argument (?!3)[0-9]", result.err), result


@pytest.mark.parametrize("argv", [["--skey", TOKEN], ["-i", TOKEN], [f"-s{TOKEN}"]])
def test_a_wrong_key_does_not_show_at_any_verbosity(
    tenant: Tenant, run: Runs, argv: list[str]
) -> None:
    result = run("-vvv", "--json", *argv)
    assert result.status == 1
    assert tenant.requests
    assert TOKEN not in result.out + result.err


WORDS = [  # as they may stand on a command line, the secret somewhere among them
    ["-v"],
    ["-vv"],
    ["ann"],
    ["--json"],
    ["-n"],
    ["--no-force"],
    ["-g", "5"],
    ["-s"],
    ["--skey"],
    ["--skey-file"],
    ["-i"],
    ["-H"],
    ["-g"],
    ["="],
    [""],
    ["-"],
]
WITH_TOKEN = [
    [f"--skye={TOKEN}"],
    [f"--{TOKEN}"],
    [f"-{TOKEN}"],
    [f"-{TOKEN} {TOKEN}"],
]
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
    choice = WORDS + WITH_TOKEN
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
        (["ann", "--json", "bob"], ["ann", "bob"]),
        (["--json", "--", "ann", "bob"], ["ann", "bob"]),
        (["ann", "--json", "--", "bob"], ["ann", "bob"]),
        (["--json", "ann", "--"], ["ann"]),
        (["--json", "--", "-odd"], ["-odd"]),
        (["--json", "--", "--odd", "-x"], ["--odd", "-x"]),
        (["--json", "ann", "--", "-n", "--no-json"], ["ann", "-n", "--no-json"]),
        (["--json", "--", "-g", "-1"], ["-g", "-1"]),
        (["--json", "--", "--help"], ["--help"]),
        (["--json", "--", "ann", "--", "bob"], ["ann", "--", "bob"]),
        (["--json", "a b", "\u00e9", "\U0001f4f1"], ["a b", "\u00e9", "\U0001f4f1"]),
        (["--json", "@ann", "DOM\\ann", "ann=x"], ["@ann", "DOM\\ann", "ann=x"]),
    ],
    ids=lambda words: " ".join(words),
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
        "https://{}",
        "https://{}/",
        "HTTPS://{}/",
        "http://{}",
        "  {}\n",
        "https://{}/admin/v1/users?limit=1",
        "{}/",
        "{}/frame#top",
    ],
)
def test_a_pasted_host_is_reduced_to_its_name_and_port(
    tenant: Tenant, run: Runs, form: str
) -> None:
    for host in (
        tenant.host,
        tenant.host.upper(),
        tenant.host.replace("localhost", "127.0.0.1"),
    ):
        assert run("--host", form.format(host), DUO_HOST="").status == 0
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


@pytest.mark.parametrize(
    ("mode", "warned"),
    [
        pytest.param(0o600, False, id="600"),
        pytest.param(0o400, False, id="400"),
        pytest.param(0o640, False, id="640"),
        pytest.param(0o660, False, id="660"),
        pytest.param(0o644, True, id="644"),
        pytest.param(0o604, True, id="604"),
        pytest.param(0o444, True, id="444"),
        pytest.param(0o666, True, id="666"),
    ],
)
def test_a_key_file_that_others_can_read_is_warned_of(
    tenant: Tenant, run: Runs, tmp_path: Path, mode: int, warned: bool
) -> None:
    path = tmp_path / "key"
    path.write_text(f" {SKEY}\r\n")
    path.chmod(mode)
    result = run(DUO_SKEY="", DUO_SKEY_FILE=str(path))
    assert (result.status, result.out) == (0, "")
    if warned:
        file = "--skey-file (DUO_SKEY_FILE)"
        assert result.err == f"warning: others can read the file of {file}\n"
    else:
        assert result.err == ""
    assert tenant.requests


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_a_key_file_without_permission_to_read_it(
    tenant: Tenant, run: Runs, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text(SKEY)
    path.chmod(0)
    result = run("--skey-file", str(path), DUO_SKEY="")
    assert_usage_error(tenant, result, "skey_file")
    assert stat.S_IMODE(path.stat().st_mode) == 0


def test_the_key_may_come_through_a_pipe(run: Runs) -> None:
    # As with --skey-file <(pass duo) in a shell.
    reading, writing = os.pipe()
    try:
        os.write(writing, f"{SKEY}\n".encode())
        os.close(writing)
        result = run("--skey-file", f"/dev/fd/{reading}", DUO_SKEY="")
    finally:
        os.close(reading)
    assert (result.status, result.err) == (0, "")


# Help


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_tells_of_every_setting_and_fits_80_columns(run: Runs, flag: str) -> None:
    result = run(flag, COLUMNS="80")
    assert (result.status, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80
    assert not re.search("[ \t]$", result.out, re.MULTILINE)
    for name in SETTINGS:
        assert re.search(rf"\[{variable(name)}\]", usual(result.out))
        assert re.search(rf"--(no-)?{option(name)[2:]}(?![\w-])", result.out)
    for word in (
        "--force",
        "--no-force",
        "--no-dry-run",
        "--no-untag",
        "--no-json",
        "-s, --skey SKEY",
        "-i, --ikey IKEY",
        "-H, --host HOST",
        "--journal FILE",
        "-g, --grace-period MINUTES",
        "-f, --force",
        "-n, --dry-run",
        "-v, --verb",
        "-vv",
        "-h, --help",
        "--version",
        "--max-deletions N",
        "--timeout SECONDS",
        "[user ...]",
        "HTTPS_PROXY",
        "NO_PROXY",
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


def test_every_option_is_written_down_once_and_told_with_its_default(
    run: Runs,
) -> None:
    shown = usual(run("--help", COLUMNS="80").out)
    all_flags = []
    defaults = {}
    for group in duo_phone_cleanup.OPTIONS.values():
        for each in group:
            all_flags.append(each.flag)
            if each.short:
                all_flags.append(each.short)
            setting = each.flag[2:].replace("-", "_")
            defaults[setting] = each.default
            told = usual(each.help)
            assert shown.count(told) == 1
            if each.default and setting != "ca_certs":
                told += f" (default: {each.default})"
            assert f"{told} [{variable(setting)}]" in shown
    assert len(set(all_flags)) == len(all_flags)
    assert sorted(defaults) == sorted(SETTINGS)
    assert defaults.pop("ca_certs").endswith("ca_certs.pem")
    assert {name: text for name, text in defaults.items() if text} == {
        "dry_run": "no",
        "force": "yes",
        "grace_period": "10",
        "max_deletions": "100",
        "untag": "no",
        "verbose": "0",
        "json": "no",
        "timeout": "30",
    }


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
