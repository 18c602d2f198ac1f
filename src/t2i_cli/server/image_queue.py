"""The images that wait in a server: jobs first in, first out, those of one kind taken together."""

from collections import deque

from t2i_cli.server.jobs import ImageJob

IndexedJob = tuple[ImageJob, int]
"""A job and the index of one of its requests."""


class ImageQueue:
    """Jobs with images that have not started; with `jobs_share` images of several go together."""

    def __init__(self, *, jobs_share: bool) -> None:
        self._jobs_share = jobs_share
        self._jobs: deque[ImageJob] = deque()
        self._retried_alone: deque[IndexedJob] = deque()

    @property
    def jobs_waiting(self) -> int:
        """Jobs of which no image has started."""
        return sum(not job.has_started for job in self._jobs)

    @property
    def images_waiting(self) -> int:
        """Images that can be taken."""
        return len(self._retried_alone) + sum(len(job.pending) for job in self._jobs)

    def append(self, job: ImageJob) -> None:
        """Add a job at the end."""
        self._jobs.append(job)

    def discard(self, job: ImageJob) -> None:
        """Remove a job, if it is there."""
        if job in self._jobs:
            self._jobs.remove(job)

    def retry_alone(self, member: IndexedJob) -> None:
        """Have an image be the next that is taken, without others."""
        self._retried_alone.append(member)

    def take(self, most: int) -> list[IndexedJob]:
        """Take the next image and others with an equal batch key, at most `most`."""
        while self._retried_alone:
            job, index = self._retried_alone.popleft()
            if not job.done:
                return [(job, index)]
        members: list[IndexedJob] = []
        for job in list(self._jobs):
            for index in list(job.pending):
                if len(members) == most:
                    return members
                if not members or job.requests[index].batch_key() == _batch_key(members[0]):
                    members.append((job, index))
                    job.pending.remove(index)
            if not job.pending:
                self._jobs.remove(job)
            if members and not self._jobs_share:
                break
        return members


def _batch_key(member: IndexedJob) -> tuple[object, ...]:
    job, index = member
    return job.requests[index].batch_key()
