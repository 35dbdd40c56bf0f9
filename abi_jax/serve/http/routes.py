"""Every route once. The application and its description are made of these."""

from collections.abc import Sequence

from abi_jax.serve.http import chat, completions, personas, query_routes, reload, site, state, store, texts, users
from abi_jax.serve.http.openapi import endpoint
from abi_jax.serve.http.rule import Rule

_DESCRIBED = (
    *chat.RULES,
    *completions.RULES,
    *texts.RULES,
    *query_routes.RULES,
    *personas.RULES,
    *reload.RULES,
    *users.RULES,
    *store.RULES,
    *state.RULES,
)
RULES: Sequence[Rule] = (
    *_DESCRIBED,
    *site.RULES,
    Rule("GET", "/openapi.json", endpoint(_DESCRIBED), None, "This description."),
)
