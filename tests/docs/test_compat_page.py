"""The page about other libraries' names lists every one of them, and no other; its code runs."""

from __future__ import annotations

import re

import pytest

from tests.support.several_processes import ROOT

pytest.importorskip("torch")
pytest.importorskip("jax")

from grl.jax_impl import compat as jax_compat
from grl.torch_impl import compat as torch_compat

PAGE = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")


def test_the_table_lists_every_name_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)[.(]", PAGE, re.MULTILINE)
    assert rows
    assert set(rows) == {*torch_compat.__all__, *jax_compat.__all__}


def test_the_code_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {})
