"""The policy of each chat: one model, under which policy a chat's documents are read and its questions answered."""

from dataclasses import replace
from typing import TYPE_CHECKING

from app.errors import ConfigError
from app.records import ChatInfo
from app.settings import POLICIES, Settings

if TYPE_CHECKING:
    from app.chat.sessions import Sessions
    from app.runtime.engine import Engine
    from app.store.store import Store


class Policies:
    """Part of DocumentChat. Each policy has memories of its own on the disk; those of one at a time are in RAM."""

    store: "Store"
    settings: Settings
    _engine: "Engine | None"
    _ready: "Sessions | None"
    _twins: "dict[str, Engine]"  # the model under policies other than the one at the start

    if TYPE_CHECKING:

        def chat(self, id: str) -> ChatInfo: ...
        def engine(self) -> "Engine": ...
        def _sessions(self) -> "Sessions": ...
        def _sessions_over(self, engine: "Engine") -> "Sessions": ...

        @property
        def _recipe(self) -> str: ...

    def engine_under(self, policy: str) -> "Engine":
        """The model under a policy.

        Raises:
            ConfigError: the policy is not known, or cannot be had with this model and these settings.
        """
        from app.runtime import policies

        engine = self.engine()
        if policy == engine.policy:
            return engine
        if policy not in self._twins:
            self._twins[policy] = engine.under(policies.of(replace(self.settings, policy=policy)))
        return self._twins[policy]

    def policy_of(self, chat: str | None = None) -> str:
        """The policy of a chat, or the one that a new chat gets: that of the start. Never waits for the model."""
        kept = self.chat(chat).policy if chat else ""
        return kept or (self._engine.policy if self._engine else self.settings.policy)

    def set_chat_policy(self, chat: str, policy: str) -> None:
        """Read and answer a chat under another policy from its next question on.

        Its documents are read then if they were not read under that policy, and its turns are run again; the answers
        stay as they were given, and so do the documents' memories under other policies.

        Raises:
            ConfigError: the policy is not known, or cannot be had with this model and these settings.
        """
        id = self.chat(chat).id
        self.engine_under(policy)
        self.store.set_chat_policy(id, policy)

    def _recipe_under(self, policy: str) -> str:
        """What memories under a policy are made by; "" stands for the policy of the start."""
        if not policy or self._engine is None:
            return self._recipe
        try:
            return self.engine_under(policy).recipe
        except ConfigError:  # nothing can be read under it
            return ""

    def _sessions_under(self, policy: str) -> "Sessions":
        """What reads and answers under a policy. To be called inside a claim: it lets go of what others hold in RAM."""
        sessions, engine = self._sessions(), self.engine_under(policy)
        if sessions.engine is not engine:
            sessions = self._ready = self._sessions_over(engine)
        return sessions

    def _sessions_of(self, chat: str, message: int | None = None) -> "Sessions":
        """What answers in a chat, or what gave one of its answers: passages are found by the regions of its policy.

        Raises:
            InputError: another model gave that answer.
        """
        from app.chat.sessions import check_model

        stats = next((m.stats for m in self.store.messages(chat) if m.id == message), {})
        check_model(stats, self.engine())
        made = stats.get("policy")
        return self._sessions_under(made if made in POLICIES else self.policy_of(chat))
