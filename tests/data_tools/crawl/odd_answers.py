"""Answers that real servers give and no standard allows, or only an old one: name -> bytes, and
what the guard makes of them. data_tools/README.md has them as a table."""

from __future__ import annotations

import gzip
import zlib

import pyarrow as pa

from tests.data_tools.crawl import pictures

PICTURE = pictures.jpeg(72, 54)
HEADS = "heads"
LENGTHS = "lengths and chunks"
STATUS = "status lines"
ENCODINGS = "Content-Encoding"
REDIRECTS = "redirects"


def ok(
    *lines: bytes,
    body: bytes = PICTURE,
    first: bytes = b"HTTP/1.1 200 OK",
    has_length: bool = True,
    kind: bytes = b"Content-Type: image/jpeg",
) -> bytes:
    """An answer with these header lines."""
    length = [b"Content-Length: %d" % len(body)] if has_length else []
    head = [first, *([kind] if kind else []), *lines, *length, b"Connection: close"]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def chunked(*lines: bytes, size: bytes = b"%x", end: bytes = b"0\r\n\r\n") -> bytes:
    head = b"\r\n".join([b"HTTP/1.1 200 OK", *lines])
    return head + b"\r\n\r\n" + size % len(PICTURE) + b"\r\n" + PICTURE + b"\r\n" + end


def to(location: bytes, first: bytes = b"HTTP/1.1 302 Found") -> bytes:
    return ok(b"Location: " + location, body=b"", first=first)


def encoded(name: bytes, body: bytes = PICTURE) -> bytes:
    return ok(b"Content-Encoding: " + name, body=body)


def brotli(content: bytes) -> bytes:
    return bytes(pa.compress(content, "brotli", asbytes=True))


LENGTH = b"Content-Length: %d" % len(PICTURE)
CHUNKED = b"Transfer-Encoding: chunked"
NUM = len(PICTURE)
HALF = NUM // 2
FETCHED: dict[str, dict[str, bytes]] = {
    HEADS: {
        "a policy of 12 kB": ok(b"Content-Security-Policy: " + b"s" * 12_000),
        "a policy and links, 36 kB": ok(
            b"Content-Security-Policy: " + b"s" * 20_000, b"Link: " + b"l" * 16_000
        ),
        "a line of 65,000 bytes": ok(b"X-Long: " + b"y" * 65_000),
        "250 kB in all": ok(*(b"X-%d: " % n + b"y" * 25_000 for n in range(10))),
        "97 headers": ok(*(b"X-%d: y" % n for n in range(93))),
        "500 headers": ok(*(b"X-%d: y" % n for n in range(500))),
        "a blank before the colon": ok(b"X-Cache : HIT"),
        "a tab before the colon": ok(b"X-Cache\t: HIT"),
        "a blank in the name": ok(b"X Cache: HIT"),
        "no name": ok(b": HIT"),
        "no colon": ok(b"cached by us"),
        "a name in Latin-1": ok(b"X-Caf\xe9: 1"),
        "a name in UTF-8": ok("X-Zw\u00f6lf: 12".encode()),
        "a value in Latin-1": ok(b"Server: Caf\xe9"),
        "a control character": ok(b"X-A: b\x02c"),
        "a NUL": ok(b"X-A: b\x00c"),
        "a bare CR": ok(b"X-A: b\rc"),
        "a folded line": ok(b"X-A: b\r\n\tc"),
        "no blank behind the colon": ok(b"X-A:b"),
        "repeated single headers": ok(b"Server: a\r\nServer: b\r\nETag: a\r\nETag: b\r\nDate: x"),
        "broken cookies": ok(b"Set-Cookie: \xff=\x01; expires=never"),
        "a WebSocket key": ok(b"Sec-WebSocket-Key1: 1"),
        "no Content-Type": ok(kind=b""),
        "two Content-Types": ok(b"Content-Type: text/html"),
        "line ends of LF": ok(body=b"").replace(b"\r\n", b"\n").replace(b": 0", b": %d" % NUM)
        + PICTURE,
        "mixed line ends": b"HTTP/1.1 200 OK\nETag: a\r\n" + LENGTH + b"\n\r\n" + PICTURE,
    },
    LENGTHS: {
        "the length twice": ok(LENGTH),
        "the length twice in a line": ok(LENGTH + b", %d" % NUM, has_length=False),
        "the length five times": ok(*[LENGTH] * 4),
        "length and chunks": chunked(CHUNKED, b"Content-Length: 17"),
        "length and identity": ok(b"Transfer-Encoding: identity"),
        "chunks twice": chunked(CHUNKED, CHUNKED),
        "CHUNKED": chunked(b"Transfer-Encoding: CHUNKED"),
        "chunks, the end cut": chunked(CHUNKED, end=b"0\r\n"),
        "blanks behind the size": chunked(CHUNKED, size=b"%x   "),
        "zeros before the size": chunked(CHUNKED, size=b"00000%x"),
        "a chunk extension": chunked(CHUNKED, size=b"%x;name=value"),
        "a trailer": chunked(CHUNKED, end=b"0\r\nX-Sum: 1\r\n\r\n"),
        "an empty length": ok(b"Content-Length:", has_length=False),
        "a word as length": ok(b"Content-Length: unknown", has_length=False),
        "length -1": ok(b"Content-Length: -1", has_length=False),
        "a length with +": ok(b"Content-Length: +%d" % NUM, has_length=False),
        "a length with a point": ok(b"Content-Length: %d.00" % NUM, has_length=False),
        "no length": ok(has_length=False),
        "a length too large": ok(b"Content-Length: %d" % (NUM + 40), has_length=False),
        "bytes behind the length": ok(body=PICTURE + b"<!-- 12 ms -->", has_length=False).replace(
            b"Connection: close", LENGTH
        ),
    },
    STATUS: {
        "HTTP/1.0": ok(first=b"HTTP/1.0 200 OK"),
        "HTTP/1.0 without length": ok(first=b"HTTP/1.0 200 OK", has_length=False),
        "HTTP/1.3": ok(first=b"HTTP/1.3 200 OK"),
        "HTTP/2 200": ok(first=b"HTTP/2 200"),
        "http/1.1": ok(first=b"http/1.1 200 ok"),
        "ICY": ok(first=b"ICY 200 OK"),
        "no reason": ok(first=b"HTTP/1.1 200"),
        "a reason in Latin-1": ok(first=b"HTTP/1.1 200 Tr\xe8s bien"),
        "two blanks": ok(first=b"HTTP/1.1  200 OK"),
        "an empty line before": b"\r\n" + ok(),
        "100 twice before": b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + ok(),
        "103 before": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + ok(),
        "103 before, oddly": b"HTTP/1.1 103 Early Hints\r\nLink : </a>\r\n\r\n" + ok(b"A : b"),
        "201": ok(first=b"HTTP/1.1 201 Created"),
        "202": ok(first=b"HTTP/1.1 202 Accepted"),
        "203": ok(first=b"HTTP/1.1 203 Non-Authoritative Information"),
        "206, all of it": ok(
            b"Content-Range: bytes 0-%d/%d" % (NUM - 1, NUM), first=b"HTTP/1.1 206 Partial Content"
        ),
        "206 without a range": ok(first=b"HTTP/1.1 206 Partial Content"),
        "226": ok(first=b"HTTP/1.1 226 IM Used"),
    },
    ENCODINGS: {
        **{
            f"{name.decode() or 'empty'}, plain bytes": encoded(name)
            for name in (b"utf8", b"aws-chunked", b"None", b"binary", b"base64", b"8bit", b"")
            + (b"identity, identity", b"GZIP", b"deflate", b"br", b"zstd", b"image/jpeg")
        },
        "gzip, gzip, plain bytes": ok(*[b"Content-Encoding: gzip"] * 2),
        "X-GZIP": encoded(b"X-GZIP", gzip.compress(PICTURE)),
        "gzip and a comma": encoded(b"gzip,", gzip.compress(PICTURE)),
        "gzip in two members": encoded(
            b"gzip", gzip.compress(PICTURE[:HALF]) + gzip.compress(PICTURE[HALF:])
        ),
        "gzip and zeros behind it": encoded(b"gzip", gzip.compress(PICTURE) + b"\0" * 512),
        "gzip and junk behind it": encoded(b"gzip", gzip.compress(PICTURE) + b"<!-- -->" * 9000),
        "zlib": encoded(b"deflate", zlib.compress(PICTURE)),
        "raw deflate": encoded(b"deflate", zlib.compress(PICTURE)[2:-4]),
        "brotli": encoded(b"br", brotli(PICTURE)),
    },
    REDIRECTS: {
        "to Latin-1": to(b"/t/\xe9t\xe9.jpg"),
        "to UTF-8": to("/t/\u00fcber.jpg".encode()),
        "to blanks": to(b"/t/a b  c.jpg"),
        "to a fragment": to(b"/t/a.jpg#top"),
        "relative": to(b"t/a.jpg"),
        "with a blank before the colon": to(b"/t/a.jpg").replace(b"Location:", b"Location :"),
        "with a policy of 20 kB": to(b"/t/a.jpg\r\nX-Policy: " + b"s" * 20_000),
        "nine times": to(b"/hop/8"),
    },
}
REFUSED: dict[str, tuple[bytes, str]] = {
    "two lengths": (ok(b"Content-Length: %d" % (NUM + 9)), "failed:protocol"),
    "the right length, and another": (
        ok(LENGTH, b"Content-Length: 9", has_length=False),
        "failed:protocol",
    ),
    "a line of 70,000 bytes": (ok(b"X-Long: " + b"y" * 70_000), "failed:protocol"),
    "300 kB of headers": (
        ok(*(b"X-%d : " % n + b"y" * 30_000 for n in range(10))),
        "failed:protocol",
    ),
    "1,500 headers": (ok(*(b"X-%d: y" % n for n in range(1500))), "failed:protocol"),
    "half a body": (
        ok(LENGTH, body=PICTURE[:HALF], has_length=False),
        "failed:read",
    ),
    "chunks, cut": (chunked(CHUNKED)[:-200], "failed:read"),
    "heads without end": (b"HTTP/1.1 100 Continue\r\nA : b\r\n\r\n" * 20_000, "failed:protocol"),
    "a part of the file": (
        ok(b"Content-Range: bytes 9-%d/%d" % (NUM + 8, NUM + 9), first=b"HTTP/1.1 206 Partial"),
        "failed:http_206",
    ),
    "202 and a page": (ok(body=b"<html>wait", first=b"HTTP/1.1 202 Accepted"), "failed:http_202"),
    "no HTTP": (b"220 ftp.example FTP server ready\r\n", "failed:protocol"),
    "gzip in gzip": (
        encoded(b"gzip", gzip.compress(gzip.compress(PICTURE))),
        "rejected:not_an_image",
    ),
    "gzip, twice": (
        encoded(b"gzip, gzip", gzip.compress(gzip.compress(PICTURE))),
        "failed:content_encoding",
    ),
    "an unknown encoding of something else": (
        encoded(b"compress", b"\x1f\x9d\x90" + PICTURE[3:]),
        "failed:content_encoding",
    ),
    "gzip, cut": (encoded(b"gzip", gzip.compress(PICTURE)[:-99]), "failed:read"),
    "brotli, cut": (encoded(b"br", brotli(PICTURE)[:-99]), "failed:content_encoding"),
    "a gzip bomb in two members": (
        encoded(b"gzip", gzip.compress(b"\0" * 4_000_000) * 2),
        "rejected:too_large",
    ),
    "a brotli bomb": (encoded(b"br", brotli(b"\0" * 50_000_000)), "rejected:too_large"),
    "5,000 members of gzip": (
        encoded(b"gzip", gzip.compress(b"") * 5000),
        "failed:content_encoding",
    ),
    "too long, behind an odd head": (
        ok(b"A : b", body=b"\xff\xd8\xff" * 2_000_000, has_length=False),
        "rejected:too_large",
    ),
    "noai behind an odd line": (ok(b"A : b", b"X-Robots-Tag: noai"), "rejected:x_robots_tag"),
    "noai, a blank before its colon": (ok(b"X-Robots-Tag : noai"), "rejected:x_robots_tag"),
    "noai behind 300 headers": (
        ok(*(b"X-%d: y" % n for n in range(300)), b"X-Robots-Tag: noai"),
        "rejected:x_robots_tag",
    ),
    "noai, folded": (ok(b"A : b", b"X-Robots-Tag:\r\n noai"), "rejected:x_robots_tag"),
    "reserved, oddly": (ok(b"no colon", b"tdm-reservation: 1"), "rejected:tdm_reservation"),
    "eleven redirects": (to(b"/hop/10"), "failed:too_many_redirects"),
}
# What bare img2dataset takes all the same, and why the guard does not.
OURS = {
    "300 kB of headers": "a head has 256 kB at most, as in Chrome",
    "the right length, and another": "RFC 9112 (6.3) and browsers refuse it: a split response",
    "a part of the file": "half a picture",
    "noai behind an odd line": "the site's wish",
    "noai, a blank before its colon": "the site's wish",
    "noai, folded": "the site's wish",
    "reserved, oddly": "the site's wish",
    "too long, behind an odd head": "crawl.max_image_bytes",
}
ALLOWING = b"User-agent: *\nDisallow: /no/\n"
ROBOTS: dict[str, bytes] = {
    "Content-Encoding: UTF-8": ok(b"Content-Encoding: UTF-8", body=ALLOWING),
    "Content-Encoding: gzip, plain bytes": ok(b"Content-Encoding: gzip", body=ALLOWING),
    "gzip": ok(b"Content-Encoding: gzip", body=gzip.compress(ALLOWING)),
    "brotli": ok(b"Content-Encoding: br", body=brotli(ALLOWING)),
    "a policy of 9 kB": ok(b"Content-Security-Policy: " + b"a" * 9000, body=ALLOWING),
    "200 headers": ok(*(b"X-%d: y" % n for n in range(200)), body=ALLOWING),
    "the length twice": ok(b"Content-Length: %d" % len(ALLOWING), body=ALLOWING),
    "a blank before the colon": ok(b"X-Cache : HIT", body=ALLOWING),
    "203": ok(body=ALLOWING, first=b"HTTP/1.1 203 Non-Authoritative Information"),
    "LF alone": b"HTTP/1.1 200 OK\nConnection: close\n\n" + ALLOWING,
    "CR alone in the file": ok(body=ALLOWING.replace(b"\n", b"\r")),
    "a byte order mark": ok(body=b"\xef\xbb\xbf" + ALLOWING),
    "UTF-16": ok(body=ALLOWING.decode().encode("utf-16")),
    "UTF-16, big endian": ok(body=b"\xfe\xff" + ALLOWING.decode().encode("utf-16-be")),
}
# A robots.txt that says nothing: everything may be fetched (RFC 9309, 2.3.1.2 and 2.3.1.3; Google
# takes a redirect that leads nowhere for 404).
NO_ROBOTS: dict[str, bytes] = {
    "204": ok(body=b"", first=b"HTTP/1.1 204 No Content"),
    "304": ok(body=b"", first=b"HTTP/1.1 304 Not Modified"),
    "451": ok(body=b"", first=b"HTTP/1.1 451 Unavailable For Legal Reasons"),
    "a redirect to no web address": to(b"about:blank"),
    "a redirect to a private address": to(b"http://192.168.0.1/robots.txt"),
    "a page": ok(body=b"<!doctype html><title>Home</title>"),
}
UNREACHABLE: dict[str, bytes] = {
    "500": ok(body=b"", first=b"HTTP/1.1 500 Internal Server Error"),
    "429": ok(body=b"", first=b"HTTP/1.1 429 Too Many Requests"),
    "999": ok(body=b"", first=b"HTTP/1.1 999 Request denied"),
    "no HTTP": b"SSH-2.0-OpenSSH_9.7\r\n",
    "half a file": ok(b"Content-Length: 99", body=ALLOWING, has_length=False),
    "bytes of an encoding that we have not": ok(
        b"Content-Encoding: zstd", body=b"\x28\xb5\x2f\xfd" + bytes(range(40))
    ),
}
