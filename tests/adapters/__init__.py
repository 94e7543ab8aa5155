"""The adapters: one contract for all, and what is particular to each."""

import pytest

for _module in ("kit", "contract", "state_contract"):
    pytest.register_assert_rewrite(f"{__name__}.{_module}")
