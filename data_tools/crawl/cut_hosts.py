"""Hosts of which good URLs were left out, because the host is slow by its own wish, asked for a
pause, or could not say its rules: who they are, how many URLs each, and what brings them."""

from __future__ import annotations

import re
from collections import Counter
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc

from data_tools.config import CrawlConfig
from data_tools.config.crawl import retry_rounds
from data_tools.tables.schema import CUT_FATES

SHOWN = 10
DAY_S = 24 * 3600
_IN_WORDS = dict(
    zip(
        CUT_FATES,
        (
            "not asked",
            "refused, the host asks for a pause (HTTP 429)",
            "not asked, its robots.txt can't be read",
        ),
        strict=True,
    )
)
# as hosts.HostTurns writes it
_INTERVAL = re.compile(r"asked once in ([\d.]+) s")


class CutHosts:
    """Counts URLs by host and status, part by part: `add`, then `lines`."""

    def __init__(self) -> None:
        self._urls: Counter[tuple[str, str]] = Counter()
        self._interval_s: dict[str, float] = {}

    def add(self, rows: pa.Table, fates: pa.Table) -> None:
        """Count a part: ROWS and FATES, row for row. A URL with several captions counts once."""
        is_cut = pc.is_in(fates["status"], value_set=pa.array(CUT_FATES))
        found = pa.table(
            {"url": rows["url"], "status": fates["status"], "detail": fates["detail"]}
        ).filter(is_cut)
        by_url = {row["url"]: row for row in found.to_pylist()}
        for url, row in by_url.items():
            host = _host(url)
            self._urls[host, row["status"]] += 1
            match = _INTERVAL.search(row["detail"] or "")
            if match is not None:
                self._interval_s[host] = float(match[1])

    @property
    def num_urls(self) -> int:
        return sum(self._urls.values())

    def lines(self, config: CrawlConfig) -> list[str]:
        """What to tell the user: a line for each of up to SHOWN hosts, the one with most URLs
        first; none where no host was cut."""
        if not self._urls:
            return []
        shown = sorted(self._urls.items(), key=lambda item: (-item[1], item[0]))
        hosts = len({host for host, _ in self._urls})
        lines = [
            f"  {self.num_urls:,} URLs were left out because of their hosts, {hosts:,} in all; the "
            "ledger names each (failed:host_busy, http_429, robots_unreachable):"
        ]
        lines += [self._line(*key, count, config) for key, count in shown[:SHOWN]]
        if len(shown) > SHOWN:
            lines.append(f"    and {len(shown) - SHOWN:,} more, with fewer URLs each")
        return lines

    def _line(self, host: str, status: str, urls: int, config: CrawlConfig) -> str:
        interval_s = self._interval_s.get(host, 0.0) if status == "failed:host_busy" else 0.0
        again = f"crawl.retry_rounds={retry_rounds(config) + 1}"
        if not interval_s:
            return f"    {host}: {urls:,} {_IN_WORDS[status]}; later, {again} asks for these again"
        needed_s = urls * interval_s
        wait_s = f"crawl.max_host_wait_s={needed_s:.0f}"
        if needed_s > DAY_S:
            per_round = max(1, int(config.max_host_wait_s // interval_s))
            advice = f"{needed_s / DAY_S:.1f} days; each further round brings about {per_round:,}"
        elif needed_s > config.max_host_wait_s:
            advice = f"{needed_s:.0f} s; {again} {wait_s} fetches them"
        else:
            advice = f"{needed_s:.0f} s; {again} fetches them"
        pace = f"it is asked once in {interval_s:g} s"
        return f"    {host}: {urls:,} {_IN_WORDS[status]}, {pace}, which takes {advice}"


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2] or "?"
    except ValueError:
        return "?"
