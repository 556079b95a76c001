"""What is asked for on the command line and in the environment."""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import duo_phone_cleanup
from tests.simulation.tenant import SKEY, Tenant
from tests.support import MINUTE, NOW, STUCK, Result, usual

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
TOKEN = "Zx7_Qw9_Kp3_Vb5"
"""Looks like a secret key, and is no host."""


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


def told(_: Tenant, result: Result) -> str:
    """Nothing, what was done, or every step: then requests as well."""
    return "steps" if "/admin/v1/" in result.err else "done" if result.err else ""


@dataclass
class Setting:
    """A setting, and two values of it that show in what a run leaves behind."""

    name: str
    short: str
    seen: Callable[[Tenant, Result], Any]
    values: dict[str, Any]
    """Value to what is seen then; "" is for the default."""
    junk: str = "junk"
    others: tuple[str, ...] = ()
    """Variables that must not be set."""

    def ways(self, value: str) -> list[list[str]]:
        """The command lines that give it this value."""
        long = option(self.name)
        if value in ("yes", "no"):
            switch = long if value == "yes" else f"--no-{long[2:]}"
            return [[switch], *[[self.short]] * (value == "yes" and bool(self.short))]
        if self.name == "verbose":
            return [["-" + "v" * int(value)], [long] * int(value)]
        short = [[self.short, value], [self.short + value]] if self.short else []
        return [[long, value], [f"{long}={value}"], *short]


TABLE = [
    Setting("skey", "-s", status, {SKEY: 0, SKEY[::-1]: 1, "": 2}, junk="two words"),
    Setting(
        "skey_file",
        "",
        status,
        {"{tmp}/key": 0, "{tmp}/wrong-key": 1, "": 2},
        junk="{tmp}/none",
        others=("DUO_SKEY",),
    ),
    Setting(
        "ikey",
        "-i",
        status,
        {"DIWJ8X6AEYOR5OMC6TQ1": 0, "DI": 1, "": 2},
        junk="two words",
    ),
    Setting("host", "-H", status, {"{host}": 0, "localhost:1": 1, "": 2}, junk="a b"),
    Setting("grace_period", "-g", left, {"20": 4, "120": 5, "": 3}),
    Setting("force", "-f", left, {"yes": 3, "no": 5, "": 3}),
    Setting("dry_run", "-n", left, {"yes": 5, "no": 3, "": 3}),
    Setting("max_deletions", "", left, {"1": 5, "none": 3, "": 3}),
    Setting("untag", "", tagged, {"yes": 2, "no": 3, "": 3}),
    Setting("json", "", out, {"yes": "{", "no": "", "": ""}),
    Setting(
        "journal", "", status, {"{tmp}/journal": 0, "/dev/full": 1, "": 0}, "{tmp}"
    ),
    Setting("timeout", "", status, {"5": 0, "0.02": 1, "": 0}),
    Setting("ca_certs", "", status, {"{ca}": 0, "{tmp}/other-ca": 1, "": 1}),
    Setting("verbose", "-v", told, {"1": "done", "2": "steps", "": ""}),
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
        tenant.slow(row=0.05 if setting.name == "timeout" else 0)
        tenant.add_phone("ann")
        tenant.add_phone("bob", name=STUCK)
        tenant.add_phone("cleo", name=str(NOW - 10 * MINUTE))
        tenant.add_phone("dan", name=str(NOW - 10 * MINUTE + 1))
        tenant.add_phone("eve", name=STUCK, activated=True)
        given = {k: v.format_map(files) for k, v in variables.items()}
        unset = {variable(setting.name): "", **dict.fromkeys(setting.others, "")}
        result = run(*[a.format_map(files) for a in argv], **{**unset, **given})
        assert result.status < 2 or setting.seen is status, result
        return setting.seen(tenant, result)

    return see


@each_setting
def test_each_option_and_variable_does_what_it_says(
    setting: Setting, see: Callable[..., Any]
) -> None:
    for value, seen in setting.values.items():
        assert see(setting, **{variable(setting.name): value}) == seen, value
        for way in setting.ways(value) if value else [[]]:
            assert see(setting, *way) == seen, way


@each_setting
def test_an_option_beats_the_variable(
    setting: Setting, see: Callable[..., Any]
) -> None:
    one, other = (value for value in setting.values if value)
    for value, unused in ((one, other), (other, one), (one, setting.junk)):
        seen = see(setting, *setting.ways(value)[0], **{variable(setting.name): unused})
        assert seen == setting.values[value], (value, unused)


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
    assert see(TABLE[0], *argv, **variables) == 0


@pytest.mark.parametrize("value", ["none", "NONE", "None"])
def test_none_lifts_the_limit(see: Callable[..., Any], value: str) -> None:
    limit = next(setting for setting in TABLE if setting.name == "max_deletions")
    assert see(limit, DUO_MAX_DELETIONS=value) == 3
    assert see(limit, "--max-deletions", value, DUO_MAX_DELETIONS="0") == 3


@pytest.mark.parametrize(
    ("words", "yes"),
    [
        (["y", "yes", "t", "true", "on", "1"], True),
        (["n", "no", "f", "false", "off", "0"], False),
    ],
)
def test_words_for_yes_and_no(run: Runs, words: list[str], yes: bool) -> None:
    for word in words:
        for spelled in {word, word.upper(), word.title()}:
            result = run(DUO_JSON=spelled)
            assert (result.status, result.out[:1]) == (0, "{" if yes else ""), spelled


def test_the_verbosity_counts(run: Runs) -> None:
    def lines(*argv: str, **variables: str) -> int:
        return len(run(*argv, **variables).err.splitlines())

    assert 0 == lines() == lines(DUO_VERBOSE="0")
    assert 0 < lines("-v") == lines("--verbose") == lines(DUO_VERBOSE="1")
    assert lines("-v") < lines("-v", "-v") == lines("-vv") == lines(DUO_VERBOSE="2")
    assert lines("-v", DUO_VERBOSE="2") == lines("-v")


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
    "a b",
    "a_b.example",
    "-a.example",
    "a..example",
    ".example",
    "a" * 64 + ".com",
    "host:",
    "host:0",
    "host:65536",
    "host:99999",
    "host:port",
    "host:1:2",
    "host:-1",
    "ftp://host",
    "https://",
    "https:///admin",
    "https://me@host/",
    "host?x",
    "host#x",
    "h\u00f6st.example",
    "host\\x",
    "[::1]",
    "::1",
    " ",
    "/",
    "host\nhost",
    "\udcff",
]
BAD_FILES = ["{tmp}/none", "{tmp}", "{tmp}/key/key", "{tmp}/empty", "{tmp}/binary"]
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
    "timeout": [*(bad for bad in BAD_NUMBERS if bad != "1.5"), "0", "0.0", "1,5", "."],
    "ca_certs": [*BAD_FILES, "{tmp}/key", "HTTP", "DISABLE", "http", "disable"],
    "verbose": [*BAD_NUMBERS, "v", "yes"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_value_is_a_usage_error_that_does_not_repeat_it(
    tenant: Tenant, run: Runs, files: dict[str, str], tmp_path: Path, name: str
) -> None:
    for file, content in {
        "empty": b"",
        "blank": b" \n",
        "binary": bytes(range(256)),
        "two-lines": f"{SKEY}\n{SKEY}\n".encode(),
        "utf-16": SKEY.encode("utf-16"),
    }.items():
        (tmp_path / file).write_bytes(content)
        (tmp_path / file).chmod(0o600)
    unset = {variable("skey"): ""} if name == "skey_file" else {}
    is_switch = BAD[name] is BAD_WORDS
    for template in BAD[name]:
        bad = template.format_map(files)
        ways = [run(**{**unset, variable(name): bad})]
        if not is_switch and name != "verbose":
            ways += [run(f"{option(name)}={bad}", **unset)]
        for result in ways:
            assert_usage_error(tenant, result, name)
            assert len(bad) < 4 or bad not in result.err
            # No piece of a key in a file that is none, not even a byte of it.
            assert SKEY[:4] not in result.err
            assert "0x" not in result.err
    if name != "verbose" and not is_switch:
        assert_usage_error(tenant, run(option(name), "", **unset), name)


@pytest.mark.parametrize("name", SETTINGS)
def test_an_option_with_no_value_or_one_too_many_is_named_with_its_variable(
    tenant: Tenant, run: Runs, name: str
) -> None:
    takes_none = BAD[name] is BAD_WORDS or name == "verbose"
    argv = [f"{option(name)}={TOKEN}"] if takes_none else [option(name)]
    result = run(*argv)
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
    result = run(
        *[each.format_map(files) for each in argv],
        **{name: value.format_map(files) for name, value in variables.items()},
    )
    assert_usage_error(tenant, result, "skey", "skey_file")


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
    ],
)
def test_a_mistyped_option_gets_a_suggestion(
    tenant: Tenant, run: Runs, word: str, meant: str
) -> None:
    result = run("ann", word)
    assert_usage_error(tenant, result)
    assert re.findall(": did you mean (.*?)[?]", result.err) == [meant] * bool(meant)
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
        ("DUO_VERBOSITY", ""),
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
    lines = result.err.splitlines()
    assert len(lines) == bool(meant)
    for line in lines:
        assert line == f"warning: unknown variable '{name}': did you mean {meant}?"
    assert TOKEN not in result.err
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
        ["--ca-certs", TOKEN],
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
    assert TOKEN not in result.err


@pytest.mark.parametrize("option", ["--sk", "--grace", "--dry", "--no-for", "--verb"])
def test_options_cannot_be_abbreviated(tenant: Tenant, run: Runs, option: str) -> None:
    assert_usage_error(tenant, run(option, *["5"] * (option in ("--sk", "--grace"))))


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
    *([f"{name}={TOKEN}"] for name in map(option, SETTINGS)),
    *([f"{name} {TOKEN}"] for name in map(option, SETTINGS)),
    *([f"-{letter}{TOKEN}"] for letter in "siHgfnvkhx"),
    *([f"-{letter}", TOKEN] for letter in "siHg"),
]


@pytest.mark.parametrize("complete", [True, False])
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_no_command_line_shows_a_secret(
    run: Runs, complete: bool, data: st.DataObject
) -> None:
    # Of a command line that is in order otherwise, a word by itself is a user, whose
    # name may well be shown.
    alone = [] if complete else [[TOKEN], [f"skey={TOKEN}"], ["--"], ["--", TOKEN]]
    words = data.draw(st.lists(st.sampled_from(WORDS + WITH_TOKEN + alone), max_size=5))
    words.insert(
        data.draw(st.integers(0, len(words))), data.draw(st.sampled_from(WITH_TOKEN))
    )
    names = data.draw(st.sets(st.sampled_from(SETTINGS), max_size=1))
    names |= set() if complete else {"host"}
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
    assert result.kinds == ["unknown_user"] * len(users)
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
        (0o600, False),
        (0o400, False),
        (0o640, False),
        (0o660, False),
        (0o644, True),
        (0o604, True),
        (0o444, True),
        (0o666, True),
    ],
    ids=lambda value: oct(value) if value > 1 else "",
)
def test_a_key_file_that_others_can_read_is_warned_of(
    tenant: Tenant, run: Runs, tmp_path: Path, mode: int, warned: bool
) -> None:
    path = tmp_path / "key"
    path.write_text(f" {SKEY}\r\n")
    path.chmod(mode)
    result = run(DUO_SKEY="", DUO_SKEY_FILE=str(path))
    assert (result.status, result.out) == (0, "")
    lines = result.err.splitlines()
    assert len(lines) == warned
    for line in lines:
        file = "--skey-file (DUO_SKEY_FILE)"
        assert line == f"warning: others can read the file of {file}"
    assert SKEY[:4] not in result.err
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
    ):
        assert word in usual(result.out), word


def test_every_option_is_written_down_once_and_told_with_its_default(
    run: Runs,
) -> None:
    rows = [row for rows in duo_phone_cleanup.OPTIONS.values() for row in rows]
    flags = [re.findall(r"(?<!\S)--?[\w-]+", names) for names, *_ in rows]
    assert sorted(names[-1] for names in flags) == sorted(map(option, SETTINGS))
    each = [*itertools.chain(*flags)]
    assert len({*each}) == len(each)
    text = usual(run("--help", COLUMNS="80").out)
    for names, (_, _, default, about) in zip(flags, rows):
        wanted = usual(about)
        assert text.count(wanted) == 1
        rest = text[text.index(wanted) + len(wanted) :]
        told = f" (default: {default})" if default and "/" not in default else ""
        assert rest.startswith(f"{told} [{variable(names[-1][2:].replace('-', '_'))}]")
    defaults = {names[-1]: row[2] for names, row in zip(flags, rows) if row[2]}
    assert defaults.pop("--ca-certs").endswith("ca_certs.pem")
    expected = "dry-run no force yes grace-period 10 max-deletions 100 untag no"
    words = f"{expected} verbose 0 json no timeout 30".split()
    assert defaults == dict(zip((f"--{word}" for word in words[::2]), words[1::2]))


def test_the_version(run: Runs) -> None:
    result = run("--version")
    assert (result.status, result.err) == (0, "")
    assert result.out == f"duo_phone_cleanup {duo_phone_cleanup.__version__}\n"


@pytest.mark.parametrize("flag", ["-h", "--help", "--version"])
def test_help_looks_at_no_variable(tenant: Tenant, run: Runs, flag: str) -> None:
    for variables in (
        dict.fromkeys(map(variable, SETTINGS), ""),
        dict.fromkeys(map(variable, SETTINGS), "two words"),
        {"HTTPS_PROXY": "junk://", "DUO_GRACE_PEROID": "5"},
    ):
        result = run("ann", "-g", "junk", flag, **variables)
        assert (result.status, result.err) == (0, "")
        assert result.out
    assert tenant.requests == []
