"""Whether this machine can ask a store at all; whether it answers is seen when the run starts."""

from __future__ import annotations

import fsspec
from fsspec.core import split_protocol


def missing_protocol(url: str) -> str | None:
    """What keeps fsspec from asking `url`, with the fix; None where nothing does."""
    protocol, _ = split_protocol(url)
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        return (
            f"the package for {protocol}:// is missing ({error}); install it (s3fs for s3://, "
            f"gcsfs for gs://, adlfs for abfs://)"
        )
    except ValueError:
        return f"fsspec knows no {protocol}://; give s3://, gs://, abfs:// or a folder"
    return None
