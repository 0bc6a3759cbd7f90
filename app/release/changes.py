"""Releases: every change of what a model's names stand for, and of how its traffic is shared out.

A change is made under the model's lock, replaces one file, and is one row in the audit. What changes nothing leaves
nothing on record, so a call that is repeated does no harm. While the database is away nothing changes, but for a
rollback: that is carried out, and recorded when the database is back (`notes.py`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from pydantic import ValidationError

from app.config import ModelSettings
from app.errors import (
    AliasProtected,
    ChampionChanged,
    FieldError,
    InvalidInput,
    ModelsUnwritable,
    NothingToRollBack,
    PromotionRefused,
    StorageUnavailable,
    VersionRefused,
    VersionUnusable,
)
from app.manifest import TRAFFIC_RULES_FILE, Manifest, TrafficRules, is_alias
from app.registry.aliases import (
    ALIASES_FILE,
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    SHADOW,
    Aliases,
    aliases_document,
    changing_model,
)
from app.registry.registry import ModelRegistry
from app.release.evidence import Evidence, Limits
from app.release.notes import has_notes, notes, write_note
from app.release.versions import Versions
from app.storage import audit, queries
from app.storage.audit import Entry
from app.storage.database import Database
from app.storage.ids import new_id

log = structlog.get_logger(__name__)

PUBLISH, PROMOTE, ROLLBACK = "model.publish", "model.promote", "model.rollback"
SET_ALIAS, DELETE_ALIAS, SET_TRAFFIC = "model.alias", "model.alias.delete", "model.traffic"
ACTIONS = (PUBLISH, PROMOTE, ROLLBACK, SET_ALIAS, DELETE_ALIAS, SET_TRAFFIC)
LONGEST_REASON = 1_000

_RETRY_SECONDS = 5
_FIELD = "field:"


@dataclass(frozen=True, slots=True)
class Change:
    """What came of it: the model's aliases now, and a sentence.

    `changed` is false where it was so before; `recorded` is false where the audit will have it only later.
    """

    model: str
    changed: bool
    detail: str
    aliases: Aliases
    recorded: bool = True
    evidence: Evidence | None = None


class Releases:
    """The operations. All block, say who did it (`by`), and raise ModelNotFound, VersionUnusable and ModelsUnwritable.

    All but `rollback` raise StorageUnavailable. What the `registry` serves is proven; other versions are loaded before
    a name is given to them.
    """

    def __init__(
        self,
        settings: ModelSettings,
        database: Database,
        registry: ModelRegistry | None = None,
        *,
        production: bool = False,
    ) -> None:
        """Raises InvalidSettings when signatures are required, and there is no key to check them with."""
        self.versions = Versions(settings, production=production)
        self._source = self.versions.source
        self._database = database
        self._registry = registry

    def set_alias(self, name: str, alias: str, wanted: int | str, *, by: str) -> Change:
        """Have an alias stand for a version that exists. Raises AliasProtected, InvalidInput, VersionNotFound."""
        _check_alias(alias)
        version = self.versions.number(name, wanted)
        self._prove(name, version)
        with self._changing(name):
            aliases = self.versions.aliases(name)
            if aliases.get(alias) == version:
                return Change(name, changed=False, detail=f"{alias} is {version} already", aliases=aliases)
            after = {**aliases, alias: version}
            recorded = self._replace_aliases(name, SET_ALIAS, aliases, after, by=by)
        return Change(name, changed=True, detail=f"{alias} is {version} now", aliases=after, recorded=recorded)

    def delete_alias(self, name: str, alias: str, *, by: str) -> Change:
        """Take an alias away. Raises AliasProtected, InvalidInput."""
        _check_alias(alias)
        self.versions.check_model(name)
        with self._changing(name):
            aliases = self.versions.aliases(name)
            if alias not in aliases:
                return Change(name, changed=False, detail=f"there is no alias {alias}", aliases=aliases)
            after = {key: version for key, version in aliases.items() if key != alias}
            recorded = self._replace_aliases(name, DELETE_ALIAS, aliases, after, by=by)
        return Change(name, changed=True, detail=f"{alias} is gone", aliases=after, recorded=recorded)

    def traffic(self, name: str) -> TrafficRules:
        """How the model's traffic is shared out. Raises VersionUnusable where the file does not fit."""
        self.versions.check_model(name)
        try:
            return self._source.traffic_rules(name)
        except VersionRefused as error:
            raise VersionUnusable(f"the traffic rules of {name} do not fit: {error.refusal.reason}") from error

    def set_traffic(self, name: str, changes: Mapping[str, Any], *, by: str) -> Change:
        """Share the traffic out by these members; those that are not named stay. Raises InvalidInput."""
        self.versions.check_model(name)
        with self._changing(name):
            aliases = self.versions.aliases(name)
            whole = changes.keys() >= TrafficRules.model_fields.keys()  # a file that does not fit can be replaced
            before = None if whole else self.traffic(name)
            rules = _rules({**(before.model_dump() if before else {}), **changes})
            self._check_sticky(name, rules, aliases)
            if self._traffic_document(name) == rules.model_dump():
                return Change(name, changed=False, detail="the traffic is shared out so already", aliases=aliases)
            content = rules.model_dump_json(indent=2).encode() + b"\n"
            shown = self._shown(name, aliases)
            entry = _entry(SET_TRAFFIC, name, shown, {**shown, "traffic": rules.model_dump()}, by=by)
            recorded = self._carry_out(name, entry, TRAFFIC_RULES_FILE, content)
        return Change(name, changed=True, detail="the traffic is shared out anew", aliases=aliases, recorded=recorded)

    def promote(
        self,
        name: str,
        wanted: int | str,
        *,
        by: str,
        limits: Limits | None = None,
        force: bool = False,
        reason: str = "",
        share: float = 1.0,
    ) -> Change:
        """Make a version the champion, if the evidence allows it or `force` does, for which there must be a reason.

        The old champion is `previous` then, and a challenger or shadow that is the champion now is neither any more.
        The evidence is gathered in a `share` of the time. Raises PromotionRefused with it; ChampionChanged when
        somebody else was faster; VersionNotFound, InvalidInput.
        """
        _check_reason(reason, force=force)
        version = self.versions.number(name, wanted)
        aliases = self.versions.aliases(name)
        champion = aliases.get(CHAMPION)
        if champion == version:
            return Change(name, changed=False, detail=f"{version} is the champion already", aliases=aliases)
        evidence = self._examine(name, version, champion, limits or Limits(), share)
        if not evidence.passed and not force:
            failed = ", ".join(check.check for check in evidence.checks if check.passed is False)
            raise PromotionRefused(
                f"{name} {version} is not promoted: {failed}", evidence=evidence.model_dump(mode="json")
            )
        with self._changing(name):
            aliases = self.versions.aliases(name)
            if aliases.get(CHAMPION) == version:
                return Change(name, changed=False, detail=f"{version} is the champion already", aliases=aliases)
            if aliases.get(CHAMPION) != champion:
                raise ChampionChanged(f"the champion of {name} is {aliases.get(CHAMPION)} by now; ask again")
            after = _promoted(aliases, version)
            forced = force and not evidence.passed
            why = {"forced": forced, "reason": reason, "evidence": evidence.model_dump(mode="json")}
            recorded = self._replace_aliases(name, PROMOTE, aliases, after, by=by, why=why)
        detail = f"{version} is the champion now" + (", by force" if forced else "")
        return Change(name, changed=True, detail=detail, aliases=after, recorded=recorded, evidence=evidence)

    def rollback(self, name: str, *, by: str, leaving: int | None = None) -> Change:
        """Make the previous champion the champion again, at once; there is no previous one then.

        `leaving` is the version that is to be left: if another one is the champion already, nothing changes. Raises
        NothingToRollBack.
        """
        self.versions.check_model(name)
        with self._changing(name, settle=False):
            aliases = self.versions.aliases(name)
            champion, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
            if leaving is not None and champion != leaving:
                detail = f"the champion is {champion} already, and not {leaving}"
                return Change(name, changed=False, detail=detail, aliases=aliases)
            if previous is None:
                raise NothingToRollBack(f"{name} has no previous champion; the champion is {champion}")
            self.versions.manifest(name, previous)  # a version that is gone cannot answer
            after = {alias: version for alias, version in aliases.items() if alias != PREVIOUS} | {CHAMPION: previous}
            recorded = self._replace_aliases(name, ROLLBACK, aliases, after, by=by, at_once=True)
        detail = f"{previous} is the champion again"
        return Change(name, changed=True, detail=detail, aliases=after, recorded=recorded)

    def note_publication(self, name: str, version: int, origin: str, before: Aliases, *, by: str) -> bool:
        """Put on record that a version was published, and what its aliases were; whether the database has it by now."""
        with self._changing(name, settle=False):
            after = {"aliases": self.versions.aliases(name), "version": version, "origin": origin}
            entry = _entry(PUBLISH, name, {"aliases": before}, after, by=by)
            write_note(self._folder(name), entry, b"").mark()
            try:
                self._settle(self._folder(name))
            except StorageUnavailable:
                log.warning("change_not_recorded", model=name, action=PUBLISH, by=by)
                return False
        return True

    def history(self, name: str, size: int) -> list[Entry]:
        """The newest changes of a model, of everything that was carried out."""
        self.settle()
        with self._database.reading() as connection:
            return audit.page(queries.on(connection), subject=name, actions=ACTIONS, size=size).entries

    def settle(self) -> None:
        """Record what is carried out and not on record yet, of all models. Raises StorageUnavailable."""
        for name in self.unsettled():
            with self._changing(name):
                pass

    def unsettled(self) -> list[str]:
        """The models with such changes."""
        return [name for name in self._source.names() if has_notes(self._folder(name))]

    @contextmanager
    def _changing(self, name: str, *, settle: bool = True) -> Iterator[None]:
        """Nobody else changes the model meanwhile; what an earlier change has left is settled first."""
        try:
            with changing_model(self._folder(name)):
                if settle:
                    self._settle(self._folder(name))
                yield
        except VersionRefused as error:
            raise VersionUnusable(f"{name} cannot be changed: {error.refusal.reason}") from error
        except OSError as error:
            log.error("models_unwritable", model=name, error=str(error))
            raise ModelsUnwritable(f"the files of {name} cannot be written", retry_after=_RETRY_SECONDS) from error

    def _settle(self, folder: Path) -> None:
        for note in notes(folder):
            if note.happened:
                try:
                    entry = note.entry
                except ValueError as error:
                    log.error("change_not_recorded", note=note.stem, error=str(error))
                    continue
                with self._database.writing() as connection:
                    audit.record(connection, entry)
                log.info("change_recorded", model=folder.name, action=entry.action, by=entry.principal)
            note.forget()

    def _replace_aliases(
        self,
        name: str,
        action: str,
        before: Aliases,
        after: Aliases,
        *,
        by: str,
        why: Mapping[str, Any] | None = None,
        at_once: bool = False,
    ) -> bool:
        shown = self._shown(name, before)
        entry = _entry(action, name, shown, {**shown, "aliases": dict(sorted(after.items())), **(why or {})}, by=by)
        return self._carry_out(name, entry, ALIASES_FILE, aliases_document(after), at_once=at_once)

    def _carry_out(self, name: str, entry: Entry, file: str, content: bytes, *, at_once: bool = False) -> bool:
        """Replace the file and record it; whether the database has the record.

        The record is put into a transaction first, then the file is replaced, then the transaction is committed: so a
        database that is away prevents the change, and what fails after it is a change that its note remembers. With
        `at_once` nothing is asked of the database before the file is replaced.
        """
        note = write_note(self._folder(name), entry, content)
        try:
            if at_once:
                note.carry_out(file)
            with self._database.writing() as connection:
                audit.record(connection, entry)
                if not at_once:
                    note.carry_out(file)
        except (StorageUnavailable, OSError):
            if not note.happened:
                note.forget()
                raise
            log.error("change_not_recorded", model=name, action=entry.action, by=entry.principal, after=entry.after)
            return False
        note.forget()
        log.info("model_changed", model=name, action=entry.action, by=entry.principal)
        return True

    def _examine(self, name: str, version: int, champion: int | None, limits: Limits, share: float) -> Evidence:
        # What loads models takes seconds to import.
        from app.release.promotion import Champion, Log, examine  # noqa: PLC0415
        from app.release.replay import Pace, newest, steps, wholeness  # noqa: PLC0415

        candidate = self.versions.load(name, version)
        known = None
        if champion is not None and (manifest := self._manifest(name, champion)) is not None:
            try:
                known = Champion(manifest, self.versions.load(name, champion))
            except VersionUnusable:  # which is a reason to promote another one
                known = Champion(manifest, None)
        run = steps(self._database)
        record = Log(lambda number, most: newest(run, name, number, most), wholeness(self._source, name))
        return examine(candidate, known, record, limits, Pace(share))

    def _manifest(self, name: str, version: int) -> Manifest | None:
        try:
            return self._source.manifest(name, version)
        except VersionRefused:
            return None

    def _prove(self, name: str, version: int) -> None:
        entry = self._registry.models.get(name) if self._registry else None
        known = entry.versions.get(version) if entry else None
        if known is None or known.model is None:
            self.versions.prove(name, version)

    def _check_sticky(self, name: str, rules: TrafficRules, aliases: Aliases) -> None:
        """A field that callers are told apart by is one that the versions between which they are shared out take."""
        if not rules.sticky_by.startswith(_FIELD):
            return
        field = rules.sticky_by.removeprefix(_FIELD)
        for alias in (CHAMPION, CHALLENGER):
            if alias in aliases:
                fields = [known.name for known in self.versions.manifest(name, aliases[alias]).fields]
                if field not in fields:
                    detail = f"names no field of the {alias}; its fields: {', '.join(fields)}"
                    raise InvalidInput.because([FieldError("invalid", detail, field="sticky_by")])

    def _shown(self, name: str, aliases: Aliases) -> dict[str, Any]:
        """What the audit says of a model."""
        return {"aliases": dict(sorted(aliases.items())), "traffic": self._traffic_document(name)}

    def _traffic_document(self, name: str) -> dict[str, Any] | None:
        """None where it does not fit, which must not keep anybody from rolling back."""
        try:
            return self._source.traffic_rules(name).model_dump()
        except VersionRefused:
            return None

    def _folder(self, name: str) -> Path:
        return self._source.root / name


def _promoted(aliases: Aliases, version: int) -> Aliases:
    served = {alias: number for alias, number in aliases.items() if alias not in (CHALLENGER, SHADOW)}
    running = {alias: aliases[alias] for alias in (CHALLENGER, SHADOW) if aliases.get(alias, version) != version}
    before = {PREVIOUS: aliases[CHAMPION]} if CHAMPION in aliases else {}
    return {**served, **running, **before, CHAMPION: version}


def _entry(action: str, name: str, before: dict[str, Any], after: dict[str, Any], *, by: str) -> Entry:
    return Entry(new_id(), datetime.now(UTC), by, action, name, before, after)


def _rules(members: Mapping[str, Any]) -> TrafficRules:
    try:
        return TrafficRules.model_validate(members)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        place = str(found["loc"][0]) if found["loc"] else None
        raise InvalidInput.because([FieldError("invalid", found["msg"], field=place)]) from None


def _check_alias(alias: str) -> None:
    if alias == CHAMPION:
        raise AliasProtected("the champion changes by a promotion or a rollback")
    if not is_alias(alias):
        detail = "must be a lower-case word of at most 32 letters, digits and hyphens"
        raise InvalidInput.because([FieldError("invalid", detail, field="alias")])


def _check_reason(reason: str, *, force: bool) -> None:
    if force and not reason.strip():
        raise InvalidInput.because([FieldError("required", "is required with force", field="reason")])
    if len(reason) > LONGEST_REASON or "\x00" in reason:
        detail = f"must be at most {LONGEST_REASON} characters"
        raise InvalidInput.because([FieldError("too_long", detail, field="reason")])
