"""What clients call their requests: the names of the latest few thousand, whether these still run or not."""

from collections import OrderedDict, deque

CAPACITY = 4096  # requests: about as many as the ring of stories remembers
MOST_OF_ONE_NAME = 64  # a client may give all of its requests the same name


class Names:
    """From names to request ids and back. Bounded both ways; the oldest are forgotten."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._names: OrderedDict[int, str] = OrderedDict()
        self._request_ids: dict[str, deque[int]] = {}

    def add(self, request_id: int, name: str) -> None:
        """A request arrived. `name`: empty if it has none."""
        if not name:
            return
        self._names[request_id] = name
        same = self._request_ids.setdefault(name, deque())
        same.append(request_id)
        if len(same) > MOST_OF_ONE_NAME:
            del self._names[same.popleft()]
        if len(self._names) > self._capacity:
            _, oldest = self._names.popitem(last=False)
            self._request_ids[oldest].popleft()  # those of one name are in the order of all
            if not self._request_ids[oldest]:
                del self._request_ids[oldest]

    def of(self, request_id: int) -> str:
        """What its client calls this request; empty if nothing, or if that is forgotten."""
        return self._names.get(request_id, "")

    def find(self, name: str) -> tuple[int, ...]:
        """The requests of this name, oldest first."""
        return tuple(self._request_ids.get(name, ()))
