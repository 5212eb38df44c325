"""With pools alone no server is asked, and the stage says so."""

from data_tools import search
from data_tools.config import DatasetJob
from tests.data_tools.match.example_pool import paths_with_queries


def test_the_summary_says_that_no_server_was_asked(tmp_path, capsys):
    paths = paths_with_queries(tmp_path / "out", ["owl", "auk"])
    job = DatasetJob(out_dir=str(paths.root))
    job.sources.commons.enabled = False
    job.sources.pool.enabled = True
    counts = search.run(job, paths)
    assert (counts["queries"], counts["servers"], counts["queries_asked"]) == (2, 0, 0)
    assert "none was asked" in capsys.readouterr().out
    assert paths.table("searched").exists()
