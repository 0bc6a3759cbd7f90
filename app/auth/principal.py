"""Principal: who asks, and what is permitted to them.

A scope is a verb, `predict`, or a verb and a model, `predict:iris`; the verb alone permits every model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

VERBS = ("predict", "feedback", "read", "admin")
# What a client gets unless told otherwise.
LEAST = ("predict",)
_SCOPE = re.compile(r"predict(:[a-z0-9][a-z0-9-]{0,63})?|feedback|read|admin")


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever a credential speaks for; `plan` is a rate of their own, such as `600/minute`."""

    subject: str
    scopes: frozenset[str]
    plan: str | None = None

    def may(self, scope: str) -> bool:
        """Whether `scope`, a verb or a verb and a model, is permitted."""
        return scope in self.scopes or (":" in scope and scope.partition(":")[0] in self.scopes)

    def may_predict(self, model: str) -> bool:
        """The same as `may("predict:MODEL")`, with nothing put together for those who may ask every model."""
        return "predict" in self.scopes or f"predict:{model}" in self.scopes

    def may_any(self, verb: str) -> bool:
        """Whether the verb is permitted, be it for one model."""
        return any(scope.partition(":")[0] == verb for scope in self.scopes)


def is_scope(text: str) -> bool:
    """Whether that is a scope at all."""
    return _SCOPE.fullmatch(text) is not None


def known_scopes(words: Iterable[str]) -> frozenset[str]:
    """The scopes among the words; what is not ours permits nothing here."""
    return frozenset(word for word in words if is_scope(word))
