"""S3 with retries around every whole request. Only `store.connect` makes this filesystem.

A request is repeated until it succeeds, is refused, or has failed for two and a half minutes. s3fs and
botocore alone do not repeat a read whose body was cut, and give up after seconds when a server restarts; a
batch job of hours must survive both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import Any

import aiohttp
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from fsspec.asyn import _run_coros_in_chunks, sync_wrapper
from s3fs import S3FileSystem

from poisoncam_ray import metrics
from poisoncam_ray.errors import StoreAwayError, UserError

PATIENCE_S = 150.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 10.0
CONNECT_S, READ_S = 5, 20
# An upload slower than this has stopped. Uploads go in small pieces, because a failed piece is sent again.
SLOWEST_UPLOAD = 512 * 2**10
PIECE = 8 * 2**20
MOST_PIECES = 10_000
# A server copies so much within the time limit of one request.
COPY_PIECE = 128 * 2**20
COPIES_AT_ONCE = 4
# After so long a wait, a warning is logged.
TELL_AFTER_S = 5.0

log = logging.getLogger(__name__)

_BROKEN_TRANSFER = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
_PASSING_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
_REFUSED_CODES = {"ExpiredToken", "InvalidToken"}


class PatientS3(S3FileSystem):
    """s3fs with one layer of retries around every request and its whole answer.

    Answers are held in memory, so large objects are read in ranges (`open`, `cat_file`), not with `get`.
    Listings are never cached, because other processes write.

    Raises:
        UserError: credentials, permissions or the bucket are wrong. Raised at once.
        StoreAwayError: the retries are used up.
        FileNotFoundError: there is no such object.
        OSError: anything else.
    """

    retries = 1

    def __init__(self, **options: Any) -> None:
        super().__init__(
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                "max_pool_connections": 32,
                # botocore would multiply our retries by its own.
                "retries": {"total_max_attempts": 1, "mode": "standard"},
            },
            default_block_size=PIECE,
            max_concurrency=4,
            use_listings_cache=False,
            **options,
        )

    async def _call_s3(self, method: str, *parameters: Any, **arguments: Any) -> Any:
        began, wait, told = time.monotonic(), FIRST_WAIT_S, False
        while True:
            try:
                return await self._attempt(method, *parameters, **arguments)
            except Exception as error:
                if not is_passing(error):
                    if sentence := self._mistake(error, method, arguments):
                        raise UserError(sentence) from error
                    raise
                tried = time.monotonic() - began
                if tried + wait > PATIENCE_S:
                    raise StoreAwayError(
                        f"The store at {self._endpoint()} failed for {tried:.0f} s "
                        f"({method} of {_place(arguments)}: {_reason(error)}): see that it runs, then start "
                        "again."
                    ) from error
                if tried > TELL_AFTER_S and not told:
                    told = True
                    log.warning("%s does not answer (%s): waiting for it", self._endpoint(), _reason(error))
            metrics.count("retries", 1)
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
            wait = min(2 * wait, LONGEST_WAIT_S)

    # s3fs binds its own method here, not the one that a subclass has.
    call_s3 = sync_wrapper(_call_s3)

    async def _attempt(self, method: str, *parameters: Any, **arguments: Any) -> Any:
        """One request with its whole answer, within a time limit."""
        upload_s = len(arguments.get("Body") or b"") / SLOWEST_UPLOAD
        # A download is bounded by the time between two reads.
        limit = None if method == "get_object" else CONNECT_S + READ_S + upload_s
        async with asyncio.timeout(limit):
            answer = await super()._call_s3(method, *parameters, **arguments)
            if method == "get_object":
                async with answer["Body"] as body:
                    answer["Body"] = _ReadBody(await body.read())
            return answer

    async def _copy_object(self, source: str, target: str, etag: str | None = None) -> None:
        """Let the server copy an object: large ones in pieces, which it joins at the end.

        Args:
            source: bucket and key.
            target: bucket and key of the copy.
            etag: the ETag that the source must have, without quotes; None to take what is there.

        Raises:
            OSError: the server refuses; `was_taken` tells whether the source has another ETag.
        """
        size = (await self._info(source))["size"]
        (bucket, key, _), (from_bucket, from_key, _) = self.split_path(target), self.split_path(source)
        to = {"Bucket": bucket, "Key": key}
        what: dict[str, Any] = {"CopySource": {"Bucket": from_bucket, "Key": from_key}}
        if etag:
            what["CopySourceIfMatch"] = f'"{etag}"'
        if size <= COPY_PIECE:
            await self._call_s3("copy_object", **to, **what)
            return
        step = max(COPY_PIECE, -(-size // MOST_PIECES))
        to["UploadId"] = (await self._call_s3("create_multipart_upload", **to))["UploadId"]
        calls = [
            self._call_s3(
                "upload_part_copy",
                PartNumber=number,
                CopySourceRange=f"bytes={start}-{min(start + step, size) - 1}",
                **to,
                **what,
            )
            for number, start in enumerate(range(0, size, step), start=1)
        ]
        try:
            answers = await _run_coros_in_chunks(calls, batch_size=COPIES_AT_ONCE)
            parts = [
                {"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]}
                for number, answer in enumerate(answers, start=1)
            ]
            await self._call_s3("complete_multipart_upload", MultipartUpload={"Parts": parts}, **to)
        except BaseException:
            await self._abort_mpu(bucket, key, to["UploadId"])
            raise

    copy_object = sync_wrapper(_copy_object)

    async def _abort_mpu(self, *arguments: Any) -> None:
        # Cleaning up after a failure must not hide the failure. A rule of the bucket deletes what is left.
        with contextlib.suppress(Exception):
            await asyncio.wait_for(super()._abort_mpu(*arguments), READ_S)

    def _mistake(self, error: Exception, method: str, arguments: dict[str, Any]) -> str | None:
        """What the user must change, as a sentence. It names the store's error code, not its message, which
        may quote keys."""
        place, (status, code) = _place(arguments), _answer(error)
        if status in (401, 403) or code in _REFUSED_CODES:
            return (
                f"The store at {self._endpoint()} refused {method} of {place} ({code}): give credentials "
                "that may do this."
            )
        if code == "NoSuchBucket":
            return f"There is no bucket for {place} at {self._endpoint()}: create it or name another."
        if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
            return f"There are no credentials for {place}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        if isinstance(error, boto.BotoCoreError) or (isinstance(error, ValueError) and self._s3 is None):
            return f"The store cannot be asked for {place}: {' '.join(str(error).split()).rstrip('.')}."
        return None

    def _endpoint(self) -> str:
        return self._s3.meta.endpoint_url if self._s3 is not None else "S3"


class _ReadBody:
    """The body of an answer that was read already, with the interface that s3fs expects."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self, size: int = -1) -> bytes:
        size = len(self._data) if size < 0 else size
        data, self._data = self._data[:size], self._data[size:]
        return data

    def close(self) -> None:
        pass


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    status, code = _answer(error)
    if status:
        return status == 429 or (status >= 500 and status != 501) or code in _PASSING_CODES
    certificate = isinstance(error, boto.SSLError) and "certificate" in str(error).lower()
    return isinstance(error, _BROKEN_TRANSFER) and not certificate


def chunk_size(size: int) -> int:
    """The size in bytes of each request of an upload of `size` bytes."""
    return max(PIECE, -(-size // MOST_PIECES))


def was_taken(error: BaseException) -> bool:
    """Whether a conditional write failed because the object exists."""
    return isinstance(error, FileExistsError) or _answer(error)[0] == 412


def _answer(error: BaseException | None) -> tuple[int, str]:
    """HTTP status and error code of the store's answer; (0, "") when `error` is none."""
    found = error if isinstance(error, boto.ClientError) else getattr(error, "__cause__", None)
    if not isinstance(found, boto.ClientError):
        return 0, ""
    status = found.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, str(found.response.get("Error", {}).get("Code", ""))


def _reason(error: BaseException) -> str:
    return _answer(error)[1] or type(error).__name__


def _place(arguments: dict[str, Any]) -> str:
    key = arguments.get("Key") or arguments.get("Prefix") or ""
    return f"s3://{arguments.get('Bucket', '')}/{key}"
