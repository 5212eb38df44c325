from __future__ import annotations

from pathlib import Path

from tests.size import too_large


def test_names_long_files_and_long_functions_only(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("def short():\n    pass\n\n\ndef long():\n" + "    pass\n" * 60)
    assert too_large([file]) == [f"{file}:5: long, 61 lines"]
    assert too_large([file], lines=64) == [f"{file}: 65 lines", f"{file}:5: long, 61 lines"]
    assert too_large([file], lines=65, function_lines=61) == []
