"""Whole runs, as an administrator would think of them."""

from __future__ import annotations

from tests.conftest import HOUR, NOW, Run
from tests.tenant import Tenant


def test_all_users(tenant: Tenant, run: Run) -> None:
    begun = tenant.add_phone("ann")
    stuck = tenant.add_phone("bob", name=str(NOW - HOUR))
    result = run()
    assert result.status == 0
    assert tenant.phones[begun]["name"] == str(NOW)
    assert tenant.phone(stuck) is None
    assert (result.out, result.err) == ("", "")
