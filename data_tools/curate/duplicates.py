"""Pairs with one picture become one sample, which keeps the captions and queries of all.

The functions work on the tables of stage.py: `live` is the view of the pairs that no rule has
rejected yet, rules insert into `rejected`, and `merged` (uid, main) names the pair whose picture a
rejected pair shows. `curate.caption_choice` decides which pair is the main one.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from data_tools.config import CaptionChoice
from data_tools.curate.near_duplicates import Nearness, group_near
from data_tools.curate.perceptual_hash import MIN_STD_TO_COMPARE

_CHOICE = {
    CaptionChoice.longest: "length(caption) DESC, ",
    CaptionChoice.shortest: "length(caption), ",
    CaptionChoice.most_queries: "num_queries DESC, ",
    CaptionChoice.first: "",
}


def best_first(choice: CaptionChoice) -> str:
    """Return the ORDER BY that puts the main one of several pairs first. It ends with the uid, so
    that no tie is left to chance."""
    return f"{_CHOICE[choice]}original_width::BIGINT * original_height DESC, uid"


def drop_exact_duplicates(database: duckdb.DuckDBPyConnection, choice: CaptionChoice) -> None:
    """Merge pairs whose sites sent the same bytes."""
    database.execute(f"""
        CREATE TEMP TABLE same_bytes AS
        SELECT uid, first(uid) OVER (PARTITION BY sha256 ORDER BY {best_first(choice)}) AS main
        FROM live WHERE sha256 IN (SELECT sha256 FROM live GROUP BY sha256 HAVING count(*) > 1)
        """)
    database.execute("""
        INSERT INTO rejected SELECT uid, 'duplicate', 'same bytes as ' || main
        FROM same_bytes WHERE uid != main
        """)
    database.execute("INSERT INTO merged SELECT uid, main FROM same_bytes WHERE uid != main")
    database.execute("DROP TABLE same_bytes")


def drop_near_duplicates(
    database: duckdb.DuckDBPyConnection, nearness: Nearness, choice: CaptionChoice
) -> None:
    """Merge pairs whose pictures are near each other, or are connected by a chain of near pictures.
    Pictures of one colour are left out, because their hash is noise."""
    comparable = f"""
        SELECT l.*, f.hash, f.red, f.green, f.blue FROM live l JOIN features f USING (uid)
        WHERE f.grey_std >= {MIN_STD_TO_COMPARE}
    """
    # Pictures with equal hash and colours are one node: 10^5 copies of a picture cost one
    # comparison.
    database.execute(f"""
        CREATE TABLE nodes AS
        SELECT row_number() OVER (ORDER BY hash, red, green, blue) - 1 AS id, *
        FROM (SELECT DISTINCT hash, red, green, blue FROM ({comparable}))
        """)
    ids, roots = group_near(database, "nodes", nearness)
    joined = pa.table({"id": ids, "root": roots})
    database.register("joined", joined)
    database.execute(f"""
        CREATE TABLE near AS
        WITH placed AS (
            SELECT p.*, coalesce(j.root, n.id) AS root
            FROM ({comparable}) p
            JOIN nodes n USING (hash, red, green, blue) LEFT JOIN joined j ON n.id = j.id
        )
        SELECT uid, hash, first(uid) OVER best AS main, first(hash) OVER best AS main_hash
        FROM placed WHERE root IN (SELECT root FROM placed GROUP BY root HAVING count(*) > 1)
        WINDOW best AS (PARTITION BY root ORDER BY {best_first(choice)})
        """)
    database.unregister("joined")
    database.execute("""
        INSERT INTO rejected
        SELECT uid, 'near_duplicate', bit_count(xor(hash, main_hash)) || ' bits from ' || main
        FROM near WHERE uid != main
        """)
    database.execute("INSERT INTO merged SELECT uid, main FROM near WHERE uid != main")
    database.execute("DROP TABLE near")
    database.execute("DROP TABLE nodes")


def unite_queries(database: duckdb.DuckDBPyConnection) -> None:
    """Make the table `united` (schema.UNITED): the queries that each merged pair adds to the live
    pair with its picture. If several merged pairs have a query, the one with the smallest uid adds
    it."""
    database.execute("""
        CREATE TABLE united AS
        WITH members AS (
            SELECT p.uid, coalesce(above.main, m.main) AS main, unnest(p.query_ids) AS query_id
            FROM merged m JOIN pairs p USING (uid) LEFT JOIN merged above ON m.main = above.uid
        ), brought AS (
            SELECT main, query_id, min(uid) AS uid FROM members GROUP BY main, query_id
        )
        SELECT b.uid, b.main, list(b.query_id ORDER BY b.query_id) AS query_ids
        FROM brought b JOIN live l ON b.main = l.uid
        WHERE NOT list_contains(l.query_ids, b.query_id) GROUP BY b.uid, b.main
        """)


def collect_captions(database: duckdb.DuckDBPyConnection, max_captions: int) -> None:
    """Make the table `texts` (uid, captions) of every live pair: its own caption first, then the
    other texts that came with its picture, each once, in the order of their uids."""
    database.execute(f"""
        CREATE TABLE texts AS
        WITH members AS (
            SELECT uid, uid AS main, caption FROM live
            UNION ALL
            SELECT m.uid, coalesce(above.main, m.main), p.caption
            FROM merged m JOIN pairs p USING (uid) LEFT JOIN merged above ON m.main = above.uid
        ), distinct_texts AS (
            SELECT main, caption, min(CASE WHEN uid = main THEN '' ELSE uid END) AS place
            FROM members GROUP BY main, caption
        ), ranked AS (
            SELECT *, row_number() OVER (PARTITION BY main ORDER BY place) AS rank
            FROM distinct_texts
        )
        SELECT main AS uid, list(caption ORDER BY rank) AS captions
        FROM ranked WHERE rank <= {max_captions} GROUP BY main
        """)
