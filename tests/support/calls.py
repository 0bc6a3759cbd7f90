"""Requests over connections of their own, without TLS, for which a client reads all certificates: 25 ms of CPU."""

from functools import partial

import httpx2

get = partial(httpx2.get, verify=False)
post = partial(httpx2.post, verify=False)
put = partial(httpx2.put, verify=False)
delete = partial(httpx2.delete, verify=False)
