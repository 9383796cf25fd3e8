"""What people and Stripe ask of the sidecar about Stripe: webhooks, checkout, the portal, and usage reports."""

from __future__ import annotations

from typing import Final

from api.contract.openapi.components import REQUEST_ID, SECURED, Json, refusals
from api.stripe.banner import TEST_MODE

_OUTCOMES: Final = ("applied", "duplicate", "stale", "ignored", "unlinked", "pending")
_CONFIGURED: Final[Json] = {
    "configured": {"type": "boolean", "description": "Whether the provider has set a secret key of Stripe."},
    "test_mode": {
        "type": ["boolean", "null"],
        "description": "Whether it is a key of test mode, in which no money moves. Null without one.",
    },
    "banner": {
        "type": ["string", "null"],
        "description": "What to show people, such as that this is test mode or that there is no Stripe here; null: "
        "nothing.",
    },
}

_WEBHOOK_ANSWER: Final[Json] = {
    "type": "object",
    "properties": {
        "received": {"const": True, "description": "The event is stored."},
        "outcome": {
            "type": "string",
            "enum": list(_OUTCOMES),
            "description": "`applied`; `duplicate`: it was before; `stale`: a later one was applied before; `ignored`: "
            "nothing is made of it; `unlinked`: it waits until its customer is linked; `pending`: it is tried again.",
        },
        "message": {"type": ["string", "null"], "description": "More about it, for people."},
    },
    "required": ["received", "outcome", "message"],
}

_CHECKOUT: Final[Json] = {
    "type": "object",
    "properties": {
        "success": {"type": "boolean", "description": "Whether there is a checkout to go to."},
        "checkout_url": {
            "type": ["string", "null"],
            "format": "uri",
            "description": "Stripe's page. Send the browser there; it leads back to APP_URL.",
        },
        **_CONFIGURED,
        "publishable_key": {"type": ["string", "null"], "description": "For pages that use Stripe.js."},
    },
    "required": ["success", "configured", "checkout_url", "test_mode", "banner", "publishable_key"],
}

_PORTAL: Final[Json] = {
    "type": "object",
    "properties": {
        "success": {"type": "boolean", "description": "Whether there is a portal to go to."},
        "portal_url": {
            "type": ["string", "null"],
            "format": "uri",
            "description": "Stripe's page, for a short while. Send the browser there; it leads back to APP_URL.",
        },
        **_CONFIGURED,
    },
    "required": ["success", "configured", "portal_url", "test_mode", "banner"],
}

_REPORT: Final[Json] = {
    "type": "object",
    "properties": {
        "sent": {"type": "integer", "minimum": 0, "description": "Meter events that Stripe took now."},
        "units": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "How much of each meter that was.",
        },
        "pending": {"type": "integer", "minimum": 0, "description": "Those that wait, and are sent by themselves."},
        "rejected": {"type": "integer", "minimum": 0, "description": "Those that Stripe does not take."},
        "uncertain": {
            "type": "integer",
            "minimum": 0,
            "description": "Those of which nobody knows whether Stripe has them, and which are too old to send again.",
        },
        **_CONFIGURED,
        "invoice_mode": {
            "type": "string",
            "enum": ["local", "stripe_meters", "stripe_items"],
            "description": "Whose invoice counts: of the organization that was named, else where terms say nothing "
            "else.",
        },
    },
    "required": ["sent", "units", "pending", "rejected", "uncertain", "configured", "invoice_mode"],
}

SCHEMAS: Final[Json] = {
    "StripeWebhookOutcome": _WEBHOOK_ANSWER,
    "CheckoutSession": _CHECKOUT,
    "PortalLink": _PORTAL,
    "UsageReport": _REPORT,
}

TAGS: Final[list[Json]] = [
    {"name": "Stripe", "description": "Checkout, the customer portal, Stripe's webhooks, and usage that it is told of."}
]


def _answer(text: str, schema: str, example: Json) -> Json:
    content = {
        "schema": {"$ref": f"#/components/schemas/{schema}"},
        "example": example,
    }
    return {"200": {"description": text, "headers": REQUEST_ID, "content": {"application/json": content}}}


_RECEIVE_WEBHOOK: Final[Json] = {
    "tags": ["Stripe"],
    "operationId": "receive_stripe_webhook",
    "summary": "For Stripe: an event",
    "description": "The body as Stripe signed it, at most 1 MiB. It is stored before it is answered, and safe to "
    "receive twice and in any order. Needs no token: the signature says who sends it. Also at `/billing/webhook` and "
    "`/webhooks/stripe`.",
    "security": [],
    "parameters": [
        {
            "name": "Stripe-Signature",
            "in": "header",
            "required": True,
            "schema": {"type": "string"},
            "description": "`t=` the time, `v1=` the HMAC-SHA256 of `time.body` by the endpoint's secret. Valid for "
            "300 seconds.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "description": "An event of Stripe, of any API version.",
                    "properties": {"id": {"type": "string"}, "type": {"type": "string"}},
                    "required": ["id", "type"],
                }
            }
        },
    },
    "responses": {
        **_answer(
            "The event is stored.",
            "StripeWebhookOutcome",
            {"received": True, "outcome": "duplicate", "message": "already processed"},
        ),
        **refusals(
            (
                "INVALID_SIGNATURE",
                "INVALID_BODY",
                "BODY_TOO_LARGE",
                "STRIPE_NOT_CONFIGURED",
                "INGEST_BUSY",
                "DATABASE_BUSY",
                "DATABASE_UNAVAILABLE",
                "REQUEST_TIMEOUT",
            )
        ),
    },
}

_ASKED_BY_AN_OWNER: Final = (
    "NOT_A_MEMBER",
    "ROLE_REQUIRED",
    "SCOPE_REQUIRED",
    "RATE_LIMITED",
    "STRIPE_REFUSED",
    "STRIPE_UNAVAILABLE",
    "DATABASE_BUSY",
    "DATABASE_UNAVAILABLE",
    "JWKS_UNAVAILABLE",
)

_CREATE_CHECKOUT: Final[Json] = {
    "tags": ["Stripe"],
    "operationId": "create_checkout_session",
    "summary": "Begin a subscription on Stripe's page",
    "description": "For owners. Asked twice for the same, it is the same checkout. Without a key of Stripe the answer "
    "is 200 with `configured` false and a text to show. Also at `/billing/create_checkout_session`.",
    "security": SECURED,
    "parameters": [{"$ref": "#/components/parameters/RequestId"}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "plan": {"type": "string", "description": "Code of the plan, as `plans` lists it."},
                        "tenant_id": {"type": "string", "description": "Id or slug of the organization."},
                        "coupon": {
                            "type": ["string", "null"],
                            "description": "Id of a coupon at Stripe. Without one, people may enter promotion codes.",
                        },
                    },
                    "required": ["plan", "tenant_id"],
                    "additionalProperties": False,
                },
                "example": {"plan": "pro", "tenant_id": "acme"},
            }
        },
    },
    "responses": {
        **_answer(
            "Where to send the browser, or why nowhere.",
            "CheckoutSession",
            {
                "success": True,
                "configured": True,
                "checkout_url": "https://checkout.stripe.com/c/pay/cs_test_a1b2c3",
                "test_mode": True,
                "banner": TEST_MODE,
                "publishable_key": "pk_test_a1b2c3",
            },
        ),
        **refusals(
            (
                *_ASKED_BY_AN_OWNER,
                "INVALID_BODY",
                "BODY_TOO_LARGE",
                "UNSUPPORTED_MEDIA_TYPE",
                "PLAN_NOT_FOUND",
                "STRIPE_PRICE_MISSING",
                "SUBSCRIPTION_EXISTS",
                "INGEST_BUSY",
                "REQUEST_TIMEOUT",
            )
        ),
    },
}

_GET_PORTAL: Final[Json] = {
    "tags": ["Stripe"],
    "operationId": "get_portal_link",
    "summary": "A link to Stripe's customer portal",
    "description": "For owners: to change cards, see Stripe's invoices, cancel. 404 `NO_SUBSCRIPTION` before the first "
    "checkout. Also at `/billing/portal_link`.",
    "security": SECURED,
    "parameters": [
        {
            "name": "tenant_id",
            "in": "query",
            "required": True,
            "schema": {"type": "string"},
            "description": "Id or slug of the organization.",
        },
        {"$ref": "#/components/parameters/RequestId"},
    ],
    "responses": {
        **_answer(
            "Where to send the browser, or why nowhere.",
            "PortalLink",
            {
                "success": True,
                "configured": True,
                "portal_url": "https://billing.stripe.com/p/session/test_a1b2c3",
                "test_mode": True,
                "banner": TEST_MODE,
            },
        ),
        **refusals((*_ASKED_BY_AN_OWNER, "ORGANIZATION_REQUIRED", "UNKNOWN_PARAMETER", "NO_SUBSCRIPTION")),
    },
}

_REPORT_USAGE: Final[Json] = {
    "tags": ["Stripe"],
    "operationId": "report_usage",
    "summary": "Report usage to Stripe now",
    "description": "For the provider's staff and backend. Usage is reported by itself; this sends what there is at "
    "once, for a bounded time, and says what was sent. `X-Organization-ID` limits it to one organization. Also at "
    "`/billing/report-usage`.",
    "security": SECURED,
    "parameters": [{"$ref": "#/components/parameters/RequestId"}],
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "tenant_id": {
                            "type": ["string", "null"],
                            "description": "Id or slug of one organization, instead of X-Organization-ID.",
                        }
                    },
                    "additionalProperties": False,
                },
                "example": {"tenant_id": "acme"},
            }
        },
    },
    "responses": {
        **_answer(
            "What was sent.",
            "UsageReport",
            {
                "sent": 2,
                "units": {"api.request": 341},
                "pending": 0,
                "rejected": 0,
                "uncertain": 0,
                "configured": True,
                "test_mode": True,
                "banner": TEST_MODE,
                "invoice_mode": "stripe_meters",
            },
        ),
        **refusals(
            (
                "ROLE_REQUIRED",
                "SCOPE_REQUIRED",
                "NOT_A_MEMBER",
                "ORGANIZATION_NOT_FOUND",
                "INVALID_BODY",
                "BODY_TOO_LARGE",
                "INGEST_BUSY",
                "REQUEST_TIMEOUT",
                "DATABASE_BUSY",
                "DATABASE_UNAVAILABLE",
                "JWKS_UNAVAILABLE",
            )
        ),
    },
}

PATHS: Final[Json] = {
    "/api/billing/stripe_webhook": {"post": _RECEIVE_WEBHOOK},
    "/api/billing/create_checkout_session": {"post": _CREATE_CHECKOUT},
    "/api/billing/portal_link": {"get": _GET_PORTAL},
    "/api/billing/report-usage": {"post": _REPORT_USAGE},
}
