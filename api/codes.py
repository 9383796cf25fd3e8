"""The catalogue of stable codes: the word before the colon in the message of every error, which clients match.

SQL and the sidecar raise them. tests/test_error_codes.py proves that each code here is raised somewhere, with this
status, and that none is raised that is not here. `goldleaves errors --write` makes docs/errors.md of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """`status` 200: never an answer of its own, only the reason beside one event in the outcome of POST /v1/events."""

    status: int
    when: str
    remedy: str


CODES: Final[Mapping[str, Code]] = {
    "ADOPTION_BLOCKED": Code(
        409,
        "A table cannot become a tenants' table as it is. details lists everything that is in the way. Only direct SQL "
        "can cause it.",
        "Do what each line of details says, then adopt the table again.",
    ),
    "ALERT_NOT_FOUND": Code(
        404,
        "The organization has no usage alert with this id.",
        "Take the id from GET /api/v1/usage_alerts.",
    ),
    "ALREADY_AN_ORGANIZATION": Code(
        409,
        "convert_to_organization was called in an organization that is no personal one (any more).",
        "Nothing needs doing. To found another organization, call create_organization.",
    ),
    "ALREADY_A_MEMBER": Code(
        409,
        "The person who is invited, or who accepts an invitation, belongs to the organization.",
        "There is nothing to do. Give them another role with change_member_role.",
    ),
    "AMBIGUOUS_HEADER": Code(
        400,
        "A header that may come once, such as Authorization or X-Organization-ID, came several times.",
        "Send it once. A proxy in front of the gateway may be adding a second one.",
    ),
    "API_KEY_NOT_FOUND": Code(
        404,
        "There is no API key with this id that the caller manages; or, for rotate_api_key, it is revoked or expired.",
        "Take the id from GET /api/v1/api_keys. In place of a key that has ended make a new one.",
    ),
    "API_KEY_ROTATED": Code(
        409,
        "The API key was rotated before; it only goes on for its overlap.",
        "Rotate its successor, which hint names, or make a new key.",
    ),
    "AUDITED_TABLE": Code(
        409,
        "TRUNCATE of a table whose changes are in the audit log, which would not tell of it.",
        "Delete the rows: each of them is then in the audit log.",
    ),
    "AUDIT_APPEND_ONLY": Code(
        409,
        "Somebody changed or deleted entries of the audit log at the database. Nobody may, its owner included.",
        "Leave it as it is. goldleaves audit erase erases what it tells of people.",
    ),
    "BILLING_ENTITY_NOT_FOUND": Code(
        404,
        "A preview was asked for a billing entity that pays nothing in the period, or that is neither user nor "
        "organization.",
        "Leave billing_entity_type out: the preview is then of who pays when the period ends.",
    ),
    "BILLING_PERIOD_LOCKED": Code(
        409,
        "The billing period is finalized: nothing in it can change, whoever asks. Beside an event in an outcome it is "
        "why an event whose time lies in such a period was not counted.",
        "Leave the period as it is. Send late usage again with a time in the open period.",
    ),
    "BODY_TOO_LARGE": Code(
        413,
        "The body of POST /v1/events is larger than MAX_INGEST_BYTES, compressed or not, or a line of NDJSON longer "
        "than 1 MB. When details say that some of it was stored, that stays. Or a body in chunks below /api/v1 is "
        "larger than 256 MiB, or a webhook of Stripe larger than 1 MiB.",
        "Send smaller batches. NDJSON in chunks, without Content-Length, may be of any length; below /api/v1 send "
        "Content-Length.",
    ),
    "CONVERSION_FAILED": Code(
        500,
        "convert_to_organization met an error that nobody foresaw. message and details name the step. Nothing was "
        "changed.",
        "Try again. Operators: the message says what went wrong, and so does the log of Postgres.",
    ),
    "CONVERSION_ONLY": Code(
        409,
        "kind, billing_start_at or billing_user_id of an organization were written by other means than a conversion. "
        "Only direct SQL can cause it.",
        "Have the owner call convert_to_organization. There is no way back to personal.",
    ),
    "CREDIT_NOTE_NOT_FOUND": Code(
        404,
        "There is no credit note with this id, or it is another organization's.",
        "GET /api/v1/credit_notes lists them; id is what is asked for, not the number.",
    ),
    "CREDIT_TOO_HIGH": Code(
        409,
        "A credit note would take back more of a line, or of the invoice, than is left of it, which the message says.",
        "Credit at most that. GET /api/v1/credit_note_lines shows what was credited before.",
    ),
    "CURRENCY_FIXED": Code(
        409,
        "The currency of an organization was to change that has an invoice.",
        "Leave it. Found another organization for another currency.",
    ),
    "COUNT_NOT_EXACT": Code(
        400,
        "Prefer: count=planned or count=estimated. Such counts are made from the rows of all tenants.",
        "Use Prefer: count=exact.",
    ),
    "CUSTOMER_LINKED": Code(
        409,
        "A customer at Stripe was to be linked to an organization, and is another one's; or the organization has "
        "another customer.",
        "Make another customer at Stripe. One that was deleted there frees its organization, but is never another's.",
    ),
    "DATABASE_BUSY": Code(
        503, "The database gave way to another change, or cancelled a statement that waited too long.", "Try again."
    ),
    "DATABASE_RESTORED": Code(
        503,
        "The database was restored from a dump into another cluster. It records no usage until `goldleaves migrate` "
        "has begun a new generation there. The gateway keeps what it metered meanwhile.",
        "Try again later. Operators: run `goldleaves migrate`.",
    ),
    "DATABASE_UNAVAILABLE": Code(
        503,
        "The sidecar cannot reach Postgres, or Postgres is starting or out of connections.",
        "Try again after Retry-After. Operators: GET /health says which part is away.",
    ),
    "DAY_NOT_ENDED": Code(
        409,
        "A storage snapshot is asked for of a day that is not over in the organization's timezone.",
        "Wait until it is over, or name an earlier day.",
    ),
    "EMAIL_NOT_VERIFIED": Code(
        403,
        "An invitation is accepted with a token whose claim email_verified is false.",
        "Verify the address with the identity provider, then sign in again.",
    ),
    "ENTITLEMENT_NOT_FOUND": Code(
        404,
        "Nothing is set for this feature of the organization alone.",
        "GET /api/v1/entitlement_overrides lists what is. set_plan_feature changes what its plan says.",
    ),
    "EVENT_AMENDED": Code(
        409,
        "A usage event that is to be voided or amended was amended before: another one stands in its place.",
        "Correct that one, which message names.",
    ),
    "EVENT_NOT_FOUND": Code(
        404,
        "The organization has no usage event with this id and source.",
        "Name it by the id and the source that it was sent with, or by the id that GET /api/v1/usage_events shows.",
    ),
    "EVENT_VOIDED": Code(
        409,
        "A usage event that is to be amended was voided before, or what is to be corrected is itself the void of one.",
        "Send what happened as a new event.",
    ),
    "FEATURE_NOT_FOUND": Code(
        404,
        "remove_plan_feature names a feature that the plan does not have, or create_usage_alert one that has no limit.",
        "hint names those that there are.",
    ),
    "FEATURE_REQUIRED": Code(
        403,
        "The plan of the organization does not have what this needs, or its subscription gives no access. details has "
        "feature, plan and status.",
        "Ask for the plan that hint names, or pay what is due. GET /api/v1/entitlements shows what there is.",
    ),
    "HEADERS_TOO_LARGE": Code(
        431,
        "Request line and headers together are larger than the gateway reads.",
        "Send a shorter URL or fewer headers.",
    ),
    "IDEMPOTENCY_CONFLICT": Code(
        409,
        "An event has the id of an earlier one but another event name, quantity or resource_id. The first one counts: "
        "an outcome says so beside the event, an amendment is refused.",
        "Give each fact an id of its own. If the first was wrong, amend it.",
    ),
    "ID_IS_FIXED": Code(
        409,
        "An update would give a row of clients, cases, documents or workspaces another id.",
        "Leave id out, or send the one that the row has. Insert a new row where another id is wanted.",
    ),
    "INGEST_BUSY": Code(
        503,
        "More batches of events are waiting than the database takes in. Nothing of this one was stored.",
        "Send it again after Retry-After. Larger batches on fewer connections go in faster.",
    ),
    "INTERNAL_ERROR": Code(
        500, "Something went wrong on our side. details names the request.", "Report it with the value of X-Request-ID."
    ),
    "INVALID_ANCHOR_DAY": Code(
        400, "The day of the month on which billing periods begin is not from 1 to 31.", "Use 31 for the last day."
    ),
    "INVALID_ALERT": Code(
        400,
        "A usage alert has a kind, threshold, meter or feature that do not go together.",
        "Do what the message says. GET /api/v1/usage_alerts shows how those look that there are.",
    ),
    "INVALID_API_KEY": Code(
        401,
        "The API key (gl_…) is not one: malformed, unknown, revoked or expired.",
        "Use another key. Owners and admins make those of an organization, staff those that send usage events.",
    ),
    "INVALID_BILLING_PROFILE": Code(
        400,
        "A part of a billing profile is too long, has control characters, or is no country or e-mail address.",
        "Mend what the message names. What is left out stays as it is; an empty text takes it away.",
    ),
    "INVALID_BILLING_TERMS": Code(
        400,
        "Terms were to be set with a tax outside 0 to 100 %, payment days outside 0 to 365, or an unknown currency.",
        "Mend what the message names. What is left out stays as it is.",
    ),
    "INVALID_BODY": Code(
        400,
        "The body of POST /v1/events is not JSON that Postgres can hold, or neither an event, nor an array nor "
        '{"events": […]}; '
        "its gzip is damaged; or the headers of a CloudEvent cannot be read. Or a webhook of Stripe is no event.",
        "Mend the body; details says what is wrong with it. Nothing of it was stored.",
    ),
    "INVALID_BUDGET": Code(
        400,
        "A budget is not a whole number of minor units, or not above 0.",
        "Send amount_cents, such as 10000 for 100.00 usd; null takes the budget away.",
    ),
    "INVALID_CREDIT_NOTE": Code(
        400,
        "A credit note needs a reason, and lines are such as can be credited: fees, usage and what adjustments added.",
        "Mend what the message names. The tax is never named: it comes in proportion.",
    ),
    "INVALID_CURRENCY": Code(
        400,
        "An organization was to have a currency that there is not.",
        "Use an ISO 4217 code in lower case, such as usd. GET /api/v1/currencies lists them.",
    ),
    "INVALID_EMAIL": Code(400, "What is invited is not an e-mail address.", "Write it as in ada@example.com."),
    "INVALID_ENCODING": Code(
        400,
        "A header of a request to the gateway, or what its query encodes with percent signs, is not UTF-8.",
        "Encode it as UTF-8, as in %C3%A9 for é.",
    ),
    "INVALID_ENTITLEMENT": Code(
        400,
        "A feature that is set for one organization contradicts itself: see the message.",
        "Mend what the message names. GET /api/v1/entitlements shows what counts now.",
    ),
    "INVALID_EVENT": Code(
        400,
        "An event lacks a field or has one of the wrong type or range. An outcome says so beside the event, and the "
        "others of a batch are not affected; a correction is refused.",
        "Mend that event, which message names, and send it again: a rejected event uses up no id.",
    ),
    "INVALID_EXPIRY": Code(
        400,
        "expires_at of an API key is not in the future, or overlap of a rotation is not between 0 and 30 days.",
        "Mend it. A key without expires_at is good until it is revoked.",
    ),
    "INVALID_FILTER": Code(
        400,
        "filter of usage_summary or usage_report is no object of names and values, or names a meter that there is not.",
        'Send it as in {"meter": "api.request", "user_id": ["ada", "ben"]}, URL-encoded in a query.',
    ),
    "INVALID_GRANULARITY": Code(
        400,
        "granularity of usage_report is not one of hour, day, week and month.",
        "Choose one of these.",
    ),
    "INVALID_GROUP_BY": Code(
        400,
        "group_by names a dimension that no meter keeps, or none of those in filter.",
        "hint names the dimensions that there are. platform_admin lets a meter keep another one with change_meter.",
    ),
    "INVALID_METER": Code(
        400,
        "A meter would count nothing sensible. message says what is wrong with it, such as a sum of texts.",
        "Do what hint says, then define or change it again.",
    ),
    "INVALID_NAME": Code(
        400, "The name of an organization or API key is blank or longer than 200 characters.", "Choose another name."
    ),
    "INVALID_PATH": Code(
        400, "The path of a request to the gateway has a control character in it.", "Leave %00 to %1F and %7F out."
    ),
    "INVALID_PAYMENT": Code(
        400,
        "The amount of a payment or refund is no whole number from 1 on, or a reference, method or reason is missing.",
        "Mend what the message names. Amounts are in minor units of the currency.",
    ),
    "INVALID_PLAN": Code(
        400,
        "A plan or one of its features was to be called or described as it cannot be; message says what is wrong.",
        "Do what message says, and send it again.",
    ),
    "INVALID_PRICE": Code(
        400,
        "A price would make no sense by itself or beside the others, or would change what has been used already. "
        "message says what is wrong with it.",
        "Do what hint says, then make it again. Nothing was made.",
    ),
    "INVALID_QUANTITY": Code(
        400,
        "So much of a quota cannot be reserved or given back: see the message.",
        "Send a number above 0; of a reservation at most what it was for.",
    ),
    "INVALID_RANGE": Code(
        400,
        "from or to of usage_report is neither a date nor a time, or from is not before to.",
        "Send them as in 2026-01-31, 2026-01-31T09:30:00 or 2026-01-31T09:30:00Z.",
    ),
    "INVALID_SCOPE": Code(
        400,
        "An API key is asked for without a scope, or with one that such keys cannot have.",
        "Owners and admins: usage:read, data:read, data:write. platform_admin: events:write.",
    ),
    "INVALID_REPLAY": Code(
        400,
        "replay_webhooks was asked for a status that messages do not have, or for all that were ever delivered.",
        "Send status dead, delivered or pending, and for delivered ones since.",
    ),
    "INVALID_ROLE": Code(400, "There is no such role.", "Use owner, admin, member, viewer or billing, in lower case."),
    "INVALID_SLUG": Code(
        400,
        "A slug has other characters than a-z, 0-9 and inner hyphens, more than 63 of them, or looks like a UUID.",
        "Choose another slug.",
    ),
    "INVALID_STRIPE_ID": Code(
        400,
        "The id of a customer or of a price at Stripe was left out, or is none that Stripe gives.",
        "Copy it as Stripe shows it, such as cus_… or price_….",
    ),
    "INVALID_SUBSCRIPTION": Code(
        400,
        "An argument of a function of subscriptions is out of range, or two contradict each other; message says which.",
        "Send what message says. A moment (at) lies in the past, and goes with no at_period_end.",
    ),
    "INVALID_TIMEZONE": Code(400, "The timezone is not known to Postgres.", "Use an IANA name, such as Europe/Vienna."),
    "INVALID_SIGNATURE": Code(
        400,
        "A webhook of Stripe has no signature, or one that none of STRIPE_WEBHOOK_SECRET has made, or that is more "
        "than five minutes old, or ahead.",
        "Nothing was stored. Compare STRIPE_WEBHOOK_SECRET with the endpoint's secret at Stripe, and the clocks.",
    ),
    "INVALID_TOKEN": Code(
        401,
        "There is no token where one is needed, or it is malformed, expired, not signed by us, for another audience, "
        "or lacks sub or role.",
        "Get a new token from your identity provider and send it as Authorization: Bearer <token>.",
    ),
    "INVALID_WEIGHT": Code(
        400,
        "The weight of an operation is no number from 0, or its effective_from would change what was weighed already.",
        "Leave effective_from out to set a weight from now on.",
    ),
    "INVITATION_EMAIL_MISMATCH": Code(
        403,
        "The invitation is for another e-mail address than the claim email of the token, or the token has none.",
        "Sign in with the address that was invited, or have that one of yours invited.",
    ),
    "INVITATION_EXPIRED": Code(
        410,
        "The code of the invitation was good for seven days, which are over.",
        "Ask an owner or admin of the organization to send the invitation again.",
    ),
    "INVITATION_NOT_FOUND": Code(
        404,
        "There is no invitation with this code, or none with this id in the organization. When an invitation is sent "
        "again, its earlier codes are dead.",
        "Use the newest code. GET /api/v1/pending_invitations lists the ids for owners and admins.",
    ),
    "INVITATION_PENDING": Code(
        409,
        "The person has been invited already, and the invitation is still good.",
        "Send it again with resend_invitation, or revoke it with revoke_invitation first.",
    ),
    "INVITATION_REVOKED": Code(
        410,
        "The invitation was taken back: by an owner or admin, or because whoever made it lost the role to do so.",
        "Ask an owner or admin of the organization for a new one.",
    ),
    "INVITATION_USED": Code(
        409,
        "The invitation was accepted before: a code is good once.",
        "GET /api/v1/organizations lists yours. If somebody else has used it, ask for a new one.",
    ),
    "INVOICE_NOT_FOUND": Code(
        404,
        "There is no invoice with this id, or it is another organization's.",
        "GET /api/v1/invoices lists them; id is what is asked for, not the number.",
    ),
    "ISOLATION_LEVEL": Code(
        500,
        "A period is being finalized, or an organization converted, in a transaction that is not READ COMMITTED. "
        "Only direct SQL can cause it.",
        "Run it in READ COMMITTED, the default of Postgres.",
    ),
    "JWKS_UNAVAILABLE": Code(
        503,
        "The token is one of the identity provider, and its keys (JWT_JWKS_URL) could not be had since the start.",
        "Try again after Retry-After. Operators: the log says jwks_not_renewed, and why.",
    ),
    "LAST_OWNER": Code(
        409,
        "The change would leave an organization without an owner.",
        "Make somebody else an owner first.",
    ),
    "LEDGER_APPEND_ONLY": Code(
        409,
        "Somebody changed or deleted payments, refunds, credit notes or balance entries at the database. Nobody may.",
        "Take a payment back with record_refund, correct an invoice with create_credit_note.",
    ),
    "LEDGER_INCONSISTENT": Code(
        409,
        "An entry contradicts its invoice or another entry: a refund for another payer's credit note, or direct SQL.",
        "Use create_credit_note, record_payment and record_refund: they write all that belongs together.",
    ),
    "MALFORMED_REQUEST": Code(
        400,
        "What came is no HTTP request: a broken request line, header, length or chunk, or a URL with raw bytes. "
        "The connection is closed.",
        "Use an HTTP client, and percent-encode URLs.",
    ),
    "MEMBER_NOT_FOUND": Code(
        404,
        "Nobody with this user_id belongs to the organization.",
        "GET /api/v1/memberships lists who does.",
    ),
    "METERED_TABLE": Code(
        409,
        "TRUNCATE of a table whose rows' deletion, or whose storage, is metered: what it held would stay on the bill.",
        "Delete the rows, or stop metering the table first, with unmeter_table().",
    ),
    "METER_EXISTS": Code(
        409,
        "There is a meter with this code, or was one: codes are not used again.",
        "Change it with change_meter, or choose another code.",
    ),
    "METER_FIXED": Code(
        409,
        "A code, aggregation, unit or unit_size of a meter was to change, or a meter to be removed of which invoices "
        "speak. Only direct SQL can cause it.",
        "Make another meter, and delete the one with delete_meter.",
    ),
    "METER_NOT_FOUND": Code(
        404,
        "There is no meter with this code, or it was deleted.",
        "GET /api/v1/meters lists them; hint names those that count.",
    ),
    "METHOD_NOT_ALLOWED": Code(405, "The path exists but not with this method.", "Use a method that Allow names."),
    "NOTHING_TO_WRITE_OFF": Code(
        409, "The invoice has nothing left to be paid.", "Nothing: its status says whether it is paid or void."
    ),
    "NO_SUBSCRIPTION": Code(
        404,
        "The organization never had a subscription, or the last one was canceled.",
        "Staff starts one with start_subscription. GET /api/v1/billing_subscriptions shows what there was.",
    ),
    "NOT_A_MEMBER": Code(
        403,
        "X-Organization-ID or the claim org_id names an organization that you are no member of, or that is not there.",
        "GET /api/v1/organizations without X-Organization-ID lists yours.",
    ),
    "ONE_ORGANIZATION_A_TRANSACTION": Code(
        409,
        "One transaction finalizes periods of, or converts, two organizations. Only direct SQL can cause it.",
        "Commit after each organization.",
    ),
    "ORGANIZATION_BILLED": Code(
        409,
        "An organization was to be deleted that has a billing period, since it has used something, or a subscription.",
        "Keep it. Remove its people and revoke its API keys, or hand it over with transfer_ownership.",
    ),
    "ORGANIZATION_NOT_FOUND": Code(
        404,
        "A service or platform_admin named an organization that is not there, in X-Organization-ID or org_id.",
        "Name an existing one by its id or slug.",
    ),
    "ORGANIZATION_REQUIRED": Code(
        400,
        "The request is for one organization, none was chosen and the caller has no default one.",
        "Send X-Organization-ID (id or slug), or a token with the claim org_id.",
    ),
    "ORIGIN_NOT_ALLOWED": Code(
        403,
        "A browser asked whether a page may call the API, and the page's origin is not in ALLOWED_ORIGINS.",
        "Add the origin to ALLOWED_ORIGINS of the sidecar, as the browser's console shows it.",
    ),
    "PAYMENT_METHOD_REQUIRED": Code(
        409,
        "A subscription that is paused or incomplete was to go on, and there is nothing to charge.",
        "Call set_payment_method. What waited for it goes on; what was paused by hand does with resume_subscription.",
    ),
    "PAYMENT_NOT_FOUND": Code(
        404,
        "There is no payment with this id, or it is another organization's, or a write-off.",
        "GET /api/v1/payments?kind=eq.payment lists them.",
    ),
    "PAYMENT_TOO_HIGH": Code(
        409,
        "A payment is higher than what is left to be paid of its invoice. The message says what is left.",
        "Record at most that, and the rest with the invoice that it is for.",
    ),
    "PERIOD_BUSY": Code(
        503,
        "Usage, a payment, a credit note or a price was written and not committed for too long: the period could not "
        "be finalized, or who pays could not be changed.",
        "Try again. Operators: look for long transactions in pg_stat_activity.",
    ),
    "PERIOD_NOT_ENDED": Code(409, "A period is finalized before it has ended.", "Wait until period_end."),
    "PERIOD_NOT_FOUND": Code(
        404,
        "No billing period of the organization starts on that day.",
        "Take start_date from GET /api/v1/billing_periods.",
    ),
    "PERIOD_OUT_OF_ORDER": Code(
        409,
        "A period is finalized before one that comes earlier: late usage and balances go from one to the next.",
        "Finalize the earlier one first. The message names its first day.",
    ),
    "PERIOD_REQUIRED": Code(
        400, "finalize_period was called without period_start.", "Name the period by its first day."
    ),
    "PERSONAL_OWNER": Code(
        409,
        "A personal organization has one owner, the person it was made for. Nobody else becomes one, and they stay.",
        "Call convert_to_organization first.",
    ),
    "PLAN_EXISTS": Code(409, "There is a plan with this code.", "Change it with change_plan, or choose another code."),
    "PLAN_OF_SUBSCRIPTION": Code(
        409,
        "The plan of an organization that has had a subscription was changed beside it. Only direct SQL can cause it.",
        "Use change_subscription, or set_plan.",
    ),
    "PLAN_NOT_FOUND": Code(
        404, "There is no plan with this code.", "GET /api/v1/plans lists the public ones; hint names all of them."
    ),
    "POSTGREST_UNAVAILABLE": Code(
        503,
        "PostgREST cannot be reached or went away before it had answered.",
        "Try again after Retry-After. A write may have been done all the same: look before you repeat it.",
    ),
    "PRICE_EXISTS": Code(
        409,
        "The same price counts already, as it does when create_price is sent again.",
        "Nothing needs doing: hint names the one that there is.",
    ),
    "PRICE_FIXED": Code(
        409,
        "A price was to be changed or removed, by which invoices were made. Only direct SQL can cause it.",
        "Make another price with create_price: it takes its place from a moment ahead.",
    ),
    "QUOTA_EXCEEDED": Code(
        402,
        "A hard quota of the organization is used up, or would be by what is asked for. details has its limit, what is "
        "used, and when it begins anew.",
        "Wait until resets_at, free some of it, or ask for a plan with more. GET /api/v1/entitlements shows what is "
        "left.",
    ),
    "RATE_LIMITED": Code(
        429,
        "The organization has sent as many requests in this minute as its plan allows.",
        "Wait for the seconds of Retry-After. RateLimit-Remaining on each answer tells how many are left.",
    ),
    "REFERENCE_TAKEN": Code(
        409,
        "A payment, refund or credit note has the reference of another one, and says something else.",
        "A retry says the same as the first attempt. Give what is new a reference of its own.",
    ),
    "REFUND_TOO_HIGH": Code(
        409,
        "A refund is higher than what is left of its payment, of its credit note or of the balance: see the message.",
        "Pay back at most that: what later invoices took from the balance is spent.",
    ),
    "REPORT_TOO_LONG": Code(
        400,
        "A usage report would have more than 2,300 buckets or 100,000 rows.",
        "Ask for less time, for longer buckets, for fewer dimensions, or for one meter by filter.",
    ),
    "REQUEST_TIMEOUT": Code(
        408,
        "The client sent its request more slowly than REQUEST_HEAD_SECONDS or REQUEST_BODY_SECONDS allow. "
        "The connection is closed, and nothing was done.",
        "Send it again without pauses.",
    ),
    "REJECTED_EVENT_NOT_FOUND": Code(
        404,
        "There is no rejected event with this id, or it is another organization's than the one of X-Organization-ID.",
        "Take the id from GET /api/v1/rejected_events.",
    ),
    "REJECTED_EVENT_RESOLVED": Code(
        409,
        "A rejected event is resolved once: this one was replayed or dismissed before.",
        "Nothing needs doing. The audit log says who did it.",
    ),
    "RESERVATION_CONFLICT": Code(
        409,
        "Under this reference something else was reserved, or some of it was given back since.",
        "A retry repeats what it asked for. Ask for something else under another reference.",
    ),
    "RESERVATION_NOT_FOUND": Code(
        404,
        "Nothing of this feature was reserved under the reference.",
        "Send the reference that reserve_quota was given, for the same feature and organization.",
    ),
    "ROLE_REQUIRED": Code(
        403,
        "The role of the token may not do this: service sends usage, platform_admin closes periods, people (member) "
        "sign in, found organizations and accept invitations. Or yours in the organization may not: owners and admins "
        "invite people and change roles, only owners deal with owners and remove people.",
        "Use a token of the role that message names, or ask an owner or admin of the organization.",
    ),
    "ROUTE_NOT_FOUND": Code(
        404, "There is nothing at this path.", "The API is below /api/v1/; its paths are listed at /docs."
    ),
    "SCHEMA_MISMATCH": Code(
        503,
        "The database has other migrations than the sidecar knows, which was so when the sidecar first reached it. It "
        "asks nothing of such a database, and keeps what it has metered.",
        "Try again later. Operators: the log of the sidecar names the command that mends it.",
    ),
    "SCOPE_REQUIRED": Code(
        403,
        "The API key has not the scope for this: usage_summary needs usage:read, POST /v1/events a key of the provider "
        "(events:write), which does nothing else.",
        "Use a key with the scope that message names.",
    ),
    "SLUG_TAKEN": Code(409, "Another organization has this slug.", "Choose another slug."),
    "STATEMENT_NOT_PAYABLE": Code(
        409,
        "What was to be paid, credited or written off is a statement: in its period Stripe's invoice counts.",
        "Take payments, refunds and credit notes on the invoice at Stripe. GET /api/v1/stripe_invoices lists them.",
    ),
    "STRIPE_NOT_CONFIGURED": Code(
        503,
        "A webhook of Stripe came, and the sidecar has no STRIPE_WEBHOOK_SECRET.",
        "Operators: set it. Stripe sends its webhooks again for three days.",
    ),
    "STRIPE_PRICE_MISSING": Code(
        409,
        "A checkout of a plan was asked for, and nobody has said which price at Stripe the plan is.",
        "Operators: set STRIPE_PRICE_STARTER, _PRO or _FIRM and migrate, or call set_stripe_price.",
    ),
    "STRIPE_PRICE_TAKEN": Code(
        409,
        "A price at Stripe was said to be a plan, and is another plan's, at which subscriptions were made; or it is "
        "set for two plans at once.",
        "Make another price at Stripe: what was sold at this one stays what it is.",
    ),
    "STRIPE_REFUSED": Code(
        502,
        "Stripe was asked for something on somebody's behalf, and refused it; the message says why.",
        "Mend what the message names, at Stripe or in the settings.",
    ),
    "STRIPE_UNAVAILABLE": Code(
        503,
        "Stripe was asked for something on somebody's behalf, and did not answer in time, or has not for a while.",
        "Try again in a moment. Nothing was changed, and what is reported to Stripe waits by itself.",
    ),
    "STRIPE_UNKNOWN": Code(
        409,
        "An event of Stripe says what nothing is known of here, such as a price that is of no plan. It is kept, and "
        "tried again.",
        "Do what hint says, then `goldleaves stripe replay`.",
    ),
    "SUBSCRIPTION_AT_STRIPE": Code(
        409,
        "A subscription was to be changed here that Stripe manages.",
        "Owners change it in the portal, staff at Stripe. What comes of it is here a moment later.",
    ),
    "SUBSCRIPTION_CHANGED": Code(
        409,
        "The subscription changed at or after the moment (at) of this change, which would rewrite what was.",
        "Leave at out, or take a later moment. After a retry: it is done, GET /api/v1/subscription_phases shows it.",
    ),
    "SUBSCRIPTION_ENDING": Code(
        409,
        "The plan was to change at the end of the period, and the subscription is canceled by then.",
        "Take the cancellation back with resume_subscription first.",
    ),
    "SUBSCRIPTION_EXISTS": Code(
        409,
        "start_subscription was called for an organization that has a subscription.",
        "Change it with change_subscription. After a retry: it is started, GET /api/v1/billing_subscriptions shows it.",
    ),
    "SUBSCRIPTION_FIXED": Code(
        409,
        "A phase of a subscription that has begun was to be changed or removed, or another one put before it: usage is "
        "priced by it. Direct SQL can cause it, and a change in the very moment in which a planned phase begins.",
        "Change the subscription from now on; in the second case, by sending the same again.",
    ),
    "SUBSCRIPTION_NOT_ACTIVE": Code(
        409,
        "mark_past_due or mark_paid was called for a subscription that no payment is due for, such as in its trial.",
        "GET /api/v1/billing_subscriptions shows its status. What is paused goes on with resume_subscription.",
    ),
    "TIME_OUT_OF_RANGE": Code(
        400,
        "A time is further from now than billing periods are made for.",
        "Mend the time; its year is usually wrong.",
    ),
    "TOO_MANY_ALERTS": Code(
        409,
        "The organization has 100 usage alerts, which is as many as one may have.",
        "Remove some with delete_usage_alert. An alert without a feature is for each that has a limit.",
    ),
    "UNKNOWN_PARAMETER": Code(
        400,
        "The query of a correction has a parameter that there is not, or one of them twice. Passed over, a slip in "
        "`source` would correct the event of another source.",
        "Use source, late and reason, each once at most. Nothing was corrected.",
    ),
    "UNSUPPORTED_MEDIA_TYPE": Code(
        415,
        "The body of POST /v1/events is not declared as JSON, CloudEvents or NDJSON, or is compressed by another "
        "coding than gzip, or in another charset than UTF-8.",
        "Set Content-Type: application/json, or another one that the guide lists, and send it in UTF-8.",
    ),
    "USER_NOT_PROVISIONED": Code(
        403,
        "Somebody unknown came to PostgREST directly. The gateway makes people known, so it never answers this.",
        "POST /rpc/sign_in once, or come through the gateway.",
    ),
    "WEBHOOK_NOT_FOUND": Code(
        404,
        "There is no message to the provider's application with this id, or not of the organization that is named; or "
        "Stripe has sent no event with it.",
        "Take the id from GET /api/v1/webhook_messages, or /stripe_webhook_events. What was delivered is deleted after "
        "30 days.",
    ),
    "WORKSPACE_LIMIT": Code(
        403,
        "A second workspace was made in a personal organization.",
        "Convert it with convert_to_organization: organizations have as many as they like.",
    ),
}

# What PostgREST and Postgres say themselves, and the gateway passes on. `code` is this and `message` theirs. Those that
# a client of ours meets; PostgREST's documentation has them all.
PASSED_ON: Final[Mapping[str, Code]] = {
    "PGRST100": Code(
        400, "The query string is none that PostgREST can read.", "Mend the filter or select that details shows."
    ),
    "PGRST102": Code(
        400, "The body is not JSON, or its objects have different keys.", "Send JSON, each row with the same keys."
    ),
    "PGRST103": Code(
        416, "The range begins behind the last row.", "Ask for an earlier page; stop when a page is short."
    ),
    "PGRST116": Code(
        406,
        "One row was asked for (Accept: application/vnd.pgrst.object+json) and there are none or several.",
        "Filter by the id. For none-or-one, ask for a list with limit=1.",
    ),
    "PGRST200": Code(400, "select embeds a view that has no relationship to this one.", "Look at the names in select."),
    "PGRST202": Code(
        404, "There is no function of this name with these arguments.", "Look at the names of the arguments."
    ),
    "PGRST204": Code(400, "The body has a column that the view does not have.", "Leave it out, or mend its name."),
    "22P02": Code(
        400,
        "A value cannot be read as the type of its column or argument, such as a malformed UUID.",
        "Mend the value. What is called id is an id: no number of an invoice, and no slug.",
    ),
    "23502": Code(400, "A column that may not be null was left out or is null.", "Send a value for it."),
    "23503": Code(
        409, "A row refers to one that does not exist, or one that is referred to is deleted.", "See details."
    ),
    "23505": Code(
        409,
        "There is a row with this key.",
        "Change it with PATCH, or upsert with Prefer: resolution=merge-duplicates.",
    ),
    "23514": Code(
        400, "A value breaks a rule of its column, such as a length or the list of statuses.", "Mend the value."
    ),
    "25006": Code(405, "A function that writes was called with GET.", "Use POST."),
    "42P01": Code(
        404, "There is no such view. PGRST205 from PostgREST 13 on.", "Look at the name; /docs lists them all."
    ),
    "42501": Code(
        403,
        "Your role in the organization may not do this, or the row would belong to another organization. 401 "
        "without a token.",
        "Ask an owner or admin of the organization; see the grid of roles in the guide.",
    ),
    "57014": Code(
        500,
        "The query took longer than 30 seconds (5 where it changes people, keys or organizations), and was stopped.",
        "Embed less, filter more, ask for pages.",
    ),
    "42703": Code(400, "There is no such column.", "Look at the names in filters, select and order."),
}
