"""The tutorial of docs/ keeps its word: its blocks run one after the other and print what the page shows."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("flax.nnx")
pytest.importorskip("optax")

TUTORIAL = Path(__file__).parents[2] / "docs" / "porting.md"
BLOCKS = re.findall(r"```(python|text)\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL)


def without_numbers(text: str) -> str:
    """Return the text with every number replaced: the last digits of a difference depend on the machine."""
    return re.sub(r"-?\d[\d.]*(e[-+]?\d+)?", "#", text).strip()


@pytest.mark.trains
def test_blocks_run_and_print_what_is_written() -> None:
    assert [kind for kind, _ in BLOCKS].count("text") >= 3
    namespace: dict[str, Any] = {"__name__": "tutorial"}
    printed = ""
    for kind, text in BLOCKS:
        if kind == "text":
            assert without_numbers(printed) == without_numbers(text)
            continue
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(text, "porting.md", "exec"), namespace)
        printed = out.getvalue()


def test_it_finds_three_mistakes() -> None:
    text = TUTORIAL.read_text(encoding="utf-8")
    for cause in ("padding", "reversal_missing", "batchnorm_momentum"):
        assert f"'{cause}'" in text or f"{cause}:" in text
