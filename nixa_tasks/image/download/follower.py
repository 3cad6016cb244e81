"""The hash of a part, computed while its bytes come."""

from __future__ import annotations

import threading

from nixa_tasks.image.download.part import Part

SYNC = 16 << 20


class Follower:
    """Hashes a part as its bytes come, in a thread of its own, by reading back what was written:
    from the page cache, so it costs a copy, and what is hashed is what is on the disk."""

    def __init__(self, part: Part) -> None:
        import hashlib

        self._part = part
        self._digest = hashlib.sha256()
        self._done = 0
        self._error: OSError | None = None
        self._until: int | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._follow, name="sha256", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        block = memoryview(bytearray(1 << 20))
        part, synced = self._part, 0
        try:
            while not self._stopped:
                with part.changed:
                    ready = min(part.prefix, self._until or part.prefix) - self._done
                    is_idle = ready < len(block) and self._until is None
                    if is_idle and self._done - synced < SYNC:
                        part.changed.wait(0.1)
                        continue
                    if ready <= 0 and not is_idle:
                        return
                if is_idle:  # a slow network leaves time for the disk, so that little is left at the end
                    part.sync()
                    synced = self._done
                    continue
                count = part.read(block[: min(ready, len(block))], self._done)
                if count == 0:
                    raise OSError(5, "the file became shorter")
                self._digest.update(block[:count])
                self._done += count
        except OSError as error:
            self._error = error

    def finish(self, size: int) -> str:
        """The SHA-256 in hex of the first `size` bytes, which are all here. Raises OSError."""
        with self._part.changed:
            self._until = size
            self._part.changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()

    def stop(self) -> None:
        self._stopped = True
        with self._part.changed:
            self._part.changed.notify_all()
        self._thread.join()
