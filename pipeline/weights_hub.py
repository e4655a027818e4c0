"""What the Hugging Face hub is asked for: which files a revision has, and their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from models.reconviagen.weights_folder import inside, invalid_weights
from pipeline.weights import SUFFIXES, Source
from schemas.errors import AccessError, ErrorCode, ModelError, ReconError, ResourceError

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Remote:
    """A file on the hub; its SHA-256 is None where nobody knows it beforehand."""

    path: str
    size: int
    sha256: str | None


def listing(api: HfApi, source: Source, revision: str) -> tuple[str, list[Remote]]:
    """The commit that a revision is, and the files of it that are wanted.

    Raises:
        AccessError: INPUT_NOT_FOUND, LOCATION_NOT_ALLOWED.
        ModelError: MODEL_WEIGHTS_INVALID: the hub lists what may not be fetched.
        ResourceError: STORAGE_UNAVAILABLE.
    """
    from huggingface_hub import constants

    with _hub_errors(api, source.repository):
        info = api.model_info(
            source.repository,
            revision=revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,  # none by itself, unlike downloads
        )
    found = []
    for sibling in info.siblings or []:
        if not source.wants(sibling.rfilename):
            continue
        path = f"{source.repository}/{sibling.rfilename}"
        inside(source.repository, sibling.rfilename)
        if not sibling.rfilename.endswith(SUFFIXES):
            raise invalid_weights(path, "is refused", f"only {' and '.join(SUFFIXES)} files are fetched")
        if sibling.size is None:
            raise invalid_weights(path, "has no size on the hub", "the hub tells each file's size")
        checksum = None if sibling.lfs is None else sibling.lfs.sha256
        found.append(Remote(sibling.rfilename, sibling.size, checksum))
    lacking = source.lacking([each.path for each in found])
    if lacking or info.sha is None:
        text = f"{source.repository} has no {', '.join(lacking) or 'commit'} at revision {revision}."
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, text, file=source.repository)
    return info.sha, found


def download(
    api: HfApi, repository: str, revision: str, remote: Remote, target: Path, told: Callable[[int], None]
) -> None:
    """Download a file to `<target>.part` from where that ends, then give it its name.

    Args:
        api: The hub.
        repository: Owner and name.
        revision: A commit.
        remote: The file.
        target: Its path on this machine.
        told: Called with the bytes that are here.

    Raises:
        AccessError: INPUT_NOT_FOUND, LOCATION_NOT_ALLOWED.
        ModelError: MODEL_WEIGHTS_INVALID: more arrives than the hub has listed.
        ResourceError: STORAGE_UNAVAILABLE.
        OSError: Of this machine's disk.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get

    label = f"{repository}/{remote.path}"
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(repository, remote.path, revision=revision, endpoint=api.endpoint)
    try:
        with part.open("ab") as stream, _hub_errors(api, label):
            if stream.tell() > remote.size:
                stream.truncate(0)
            http_get(
                url,
                _Bounded(stream, label, remote.size, told),  # type: ignore[arg-type]
                resume_size=stream.tell(),
                headers=_headers(api),
                expected_size=remote.size,
                tqdm_class=_silent(),
            )
    except ModelError:
        part.unlink()  # whatever it is, nothing can be added to it
        raise
    part.replace(target)


class _Bounded:
    """A file that tells how long it has become, and takes no more than was listed."""

    def __init__(self, stream: BinaryIO, label: str, size: int, told: Callable[[int], None]) -> None:
        self._stream = stream
        self._label = label
        self._size = size
        self._told = told

    def write(self, data: bytes) -> int:
        if self._stream.tell() + len(data) > self._size:
            rule = f"a file has the size that the hub lists, here {self._size} bytes"
            raise invalid_weights(self._label, "is refused: more than that arrives", rule)
        written = self._stream.write(data)
        self._told(self._stream.tell())
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _headers(api: HfApi) -> dict[str, str]:
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers: dict[str, str] = build_hf_headers(token=api.token)
    return headers


def _silent() -> Any:
    """A progress bar that shows nothing: progress has its own way here."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    return Silent


@contextmanager
def _hub_errors(api: HfApi, what: str) -> Iterator[None]:
    """Translate what huggingface_hub and the network raise."""
    from huggingface_hub import errors

    hub = f"the hub at {_without_secrets(api.endpoint)}"
    try:
        yield
    except (errors.GatedRepoError, errors.DisabledRepoError) as error:
        text = f"{what}: {hub} does not give it to this user: accept its terms there, and set HF_TOKEN."
        raise AccessError(ErrorCode.LOCATION_NOT_ALLOWED, text, file=what) from error
    except errors.RevisionNotFoundError as error:
        text = f"{what}: {hub} no longer has the pinned revision; --update takes its newest one."
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, text, file=what) from error
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError) as error:
        text = f"{what}: {hub} does not have it, or shows it only to some: set HF_TOKEN."
        raise AccessError(ErrorCode.INPUT_NOT_FOUND, text, file=what) from error
    except errors.OfflineModeIsEnabled as error:
        text = f"{what} cannot be fetched: HF_HUB_OFFLINE is set."
        raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE, text, file=what) from error
    except ReconError:
        raise
    # HTTPError: the base of the HTTP client's errors. ValueError: an answer that is not the hub's.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of this machine's disk
        text = (
            f"{what} could not be fetched from {hub}; the same command goes on where this one stopped. "
            f"{_first_line(error)}"
        )
        raise ResourceError(ErrorCode.STORAGE_UNAVAILABLE, text, file=what) from error


def _without_secrets(url: str) -> str:
    """A URL without user, password and query."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def _first_line(error: Exception) -> str:
    """What an error says first; queries of signed addresses are rights, and are left out."""
    line, *_ = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"\?[^\s'\"]*", "", line)
