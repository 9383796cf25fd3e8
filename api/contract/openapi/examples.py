"""Examples for the views and functions that Goldleaves brings. Those of an adopter's own are shown without."""

from __future__ import annotations

from typing import Any, Final

_ORGANIZATION: Final = "019a6d0e-7c1a-7b52-9a51-0d7a3c5e9f10"
_USER: Final = "019a6d0e-7b90-7c44-8f1e-2b6d4a8c0e21"
_INVITATION: Final = "019a6d0f-0a41-7c9e-9d27-3c1f5b7e9a24"
_ENTRY: Final = "019a6d0f-0c71-7a55-8e19-1f2d3c4b5a69"
_CLIENT: Final = "019a6d0f-11d2-7e03-b2c4-5f8e7d6c5b32"
_CASE: Final = "019a6d0f-3e57-7a18-8d6b-6a9f8e7d6c43"
_DOCUMENT: Final = "019a6d0f-9b2c-7f61-a7e8-7bafae9e8d54"
_EVENT: Final = "019a6d0f-9b2e-7d72-b8f9-8cb0bfaf9e65"
_VOID: Final = "019a6d11-1c40-7e04-8a1b-1de2fb0a2187"
_REPLACEMENT: Final = "019a6d11-1c42-7f15-9b2c-2ef30c1b3298"
_REJECTED: Final = "019a6d11-5d53-7026-8c3d-3f041d2c43a9"
_WORKSPACE: Final = "019a6d10-2f41-7c15-94ad-3e5d6f708192"
_KEY: Final = "019a6d0f-7d41-7e55-a3b8-6c9d8e7f0a11"
_NEXT_KEY: Final = "019b0a11-2c80-7a91-b4c7-7daeaf80b122"
_INVOICE: Final = "019b0a11-4d3e-7b83-89fa-9dc1c0b0af76"

_USAGE_LINE: Final = {
    "meter": "api.request",
    "unit": "request",
    "events": 1204,
    "quantity": 1204,
    "unit_amount_cents": 25,
    "amount_cents": 30100,
}

ROWS: Final[dict[str, dict[str, Any]]] = {
    "organizations": {
        "id": _ORGANIZATION,
        "kind": "organization",
        "name": "Acme Law",
        "slug": "acme",
        "plan": "starter",
        "billing_timezone": "America/Los_Angeles",
        "billing_anchor_day": 1,
        "currency": "usd",
        "billing_start_at": None,
        "created_at": "2026-01-05T17:20:00.123456+00:00",
    },
    "memberships": {
        "organization_id": _ORGANIZATION,
        "user_id": _USER,
        "role": "member",
        "created_at": "2026-01-05T17:21:07.5+00:00",
    },
    "audit_log": {
        "organization_id": _ORGANIZATION,
        "position": 12,
        "id": _ENTRY,
        "recorded_at": "2026-01-05T17:21:07.5+00:00",
        "actor_type": "user",
        "actor_id": _USER,
        "email": "ann@acme.example",
        "ip": "203.0.113.7",
        "user_agent": "Mozilla/5.0",
        "request_id": "0d5a4a3e7c1b",
        "action": "membership.changed",
        "target_type": "membership",
        "target_id": "019a6d0e-8c11-7d02-b3a4-4d8f6c0e2a43",
        "changed_columns": ["role"],
        "before": {"role": "member"},
        "after": {"role": "admin"},
        "hash": "9f2c8e6d0b7a41538c0de1f4a59b6e37d2c4081f6e5a9b3c7d80f1e2a3b4c5d6",
    },
    "workspaces": {
        "id": _WORKSPACE,
        "organization_id": _ORGANIZATION,
        "name": "Litigation",
        "created_by": _USER,
        "created_at": "2026-01-05T17:25:40.75+00:00",
    },
    "pending_invitations": {
        "id": _INVITATION,
        "organization_id": _ORGANIZATION,
        "email": "wile@acme.example",
        "role": "member",
        "invited_by": _USER,
        "created_at": "2026-01-05T17:22:00+00:00",
        "sent_at": "2026-01-05T17:22:00+00:00",
        "expires_at": "2026-01-12T17:22:00+00:00",
    },
    "api_keys": {
        "id": _KEY,
        "organization_id": _ORGANIZATION,
        "kind": "organization",
        "name": "Nightly export",
        "prefix": "3f9c1e0b7a42",
        "scopes": ["data:read", "usage:read"],
        "created_by": _USER,
        "created_at": "2026-01-06T08:30:00+00:00",
        "expires_at": None,
        "revoked_at": None,
        "last_used_at": "2026-01-06T09:05:42+00:00",
        "rotated_from": None,
    },
    "clients": {
        "id": _CLIENT,
        "organization_id": _ORGANIZATION,
        "name": "Road Runner Inc.",
        "email": "legal@roadrunner.example",
        "created_by": _USER,
        "created_at": "2026-01-06T09:00:00+00:00",
    },
    "cases": {
        "id": _CASE,
        "organization_id": _ORGANIZATION,
        "client_id": _CLIENT,
        "title": "Road Runner v. Coyote",
        "status": "open",
        "created_by": _USER,
        "created_at": "2026-01-06T09:02:11+00:00",
    },
    "documents": {
        "id": _DOCUMENT,
        "organization_id": _ORGANIZATION,
        "case_id": _CASE,
        "title": "Complaint",
        "size_bytes": 482133,
        "status": "uploaded",
        "storage_key": "acme/complaint.pdf",
        "created_by": _USER,
        "created_at": "2026-01-06T09:05:42+00:00",
    },
    "usage_events": {
        "id": _EVENT,
        "request_id": "checkout-7421",
        "tenant_id": _ORGANIZATION,
        "billing_entity_type": "organization",
        "billing_entity_id": _ORGANIZATION,
        "user_id": _USER,
        "event_name": "api.request",
        "route": "/api/v1/cases",
        "action": "GET /api/v1/cases",
        "units": 1,
        "cost_cents": 25,
        "ts": "2026-01-06T09:05:42.001+00:00",
        "metadata": {"status_code": 200, "response_size": 1893, "processing_time": 4.2},
        "created_at": "2026-01-06T09:05:42.31+00:00",
        "event_type": "usage",
        "corrects": None,
        "workspace_id": _WORKSPACE,
        "context": "workspace Litigation",
        "weighted_units": 1,
    },
    "billing_events": {
        "id": _EVENT,
        "organization_id": _ORGANIZATION,
        "billing_entity_type": "organization",
        "billing_entity_id": _ORGANIZATION,
        "event_type": "usage",
        "event_name": "doc.upload",
        "resource_id": _DOCUMENT,
        "quantity": 1,
        "unit": "document",
        "unit_cost_cents": 25,
        "dimensions": {"request_id": "checkout-7421"},
        "status": 0,
        "occurred_at": "2026-01-06T09:05:42+00:00",
        "created_at": "2026-01-06T09:05:42+00:00",
        "weighted_units": 2,
        "corrects": None,
        "belongs_at": None,
    },
    "rejected_events": {
        "id": _REJECTED,
        "organization_id": _ORGANIZATION,
        "source": "api",
        "code": "INVALID_EVENT",
        "message": "event 0: quantity needs a number",
        "event": {"id": "scan-17", "event": "doc.scanned", "quantity": "3"},
        "rejected_at": "2026-01-06T09:06:10.2+00:00",
        "resolution": None,
        "resolved_at": None,
    },
    "billing_periods": {
        "organization_id": _ORGANIZATION,
        "period_start": "2026-01-01T08:00:00+00:00",
        "period_end": "2026-02-01T08:00:00+00:00",
        "timezone": "America/Los_Angeles",
        "start_date": "2026-01-01",
        "end_date": "2026-02-01",
        "status": "finalized",
        "finalized_at": "2026-02-01T08:10:00+00:00",
    },
    "invoices": {
        "id": _INVOICE,
        "organization_id": _ORGANIZATION,
        "billing_entity_type": "organization",
        "billing_entity_id": _ORGANIZATION,
        "number": "2026-0001",
        "period_start": "2026-01-01T08:00:00+00:00",
        "period_end": "2026-02-01T08:00:00+00:00",
        "currency": "usd",
        "total_cents": 30100,
        "issued_at": "2026-02-01T08:10:00+00:00",
    },
    "invoice_lines": {
        "invoice_id": _INVOICE,
        "organization_id": _ORGANIZATION,
        "line_number": 1,
        "description": "Requests to the API",
        **_USAGE_LINE,
    },
}

_SENT: Final = {**ROWS["pending_invitations"], "code": "9f1c0b7a4d2e86539f1c0b7a4d2e8653"}

_NEW_KEY: Final = {
    "name": "Nightly export",
    "scopes": ["data:read", "usage:read"],
    "expires_at": None,
    "id": _KEY,
    "organization_id": _ORGANIZATION,
    "prefix": "3f9c1e0b7a42",
    "created_at": "2026-01-06T08:30:00+00:00",
    "key": "gl_3f9c1e0b7a42_<64 hexadecimal digits>",
}

RESULTS: Final[dict[str, Any]] = {
    "accept_invitation": ROWS["organizations"],
    "amend_usage_event": [{"void_id": _VOID, "replacement_id": _REPLACEMENT, "already": False}],
    "change_member_role": ROWS["memberships"],
    "create_api_key": _NEW_KEY,
    "create_invitation": _SENT,
    "leave_organization": ROWS["memberships"],
    "remove_member": ROWS["memberships"],
    "resend_invitation": _SENT,
    "revoke_api_key": {**ROWS["api_keys"], "revoked_at": "2026-01-07T11:00:00+00:00"},
    "rotate_api_key": {
        **_NEW_KEY,
        "id": _NEXT_KEY,
        "prefix": "a81b2c3d4e5f",
        "created_at": "2026-02-01T08:30:00+00:00",
        "rotated_from": _KEY,
        "key": "gl_a81b2c3d4e5f_<64 hexadecimal digits>",
    },
    "revoke_invitation": ROWS["pending_invitations"],
    "transfer_ownership": {**ROWS["memberships"], "role": "owner"},
    "convert_to_organization": ROWS["organizations"] | {"billing_start_at": "2026-01-19T09:30:00.25+00:00"},
    "create_organization": ROWS["organizations"],
    "dismiss_rejected_event": {
        **ROWS["rejected_events"],
        "resolution": "dismissed",
        "resolved_at": "2026-01-07T08:00:00+00:00",
    },
    "finalize_period": ROWS["invoices"],
    "health": {"status": "ok"},
    "recalculate_period": [_USAGE_LINE],
    "replay_rejected_event": [{"outcome": "accepted", "code": None, "message": None}],
    "sign_in": {
        "user_id": _USER,
        "email": "ada@acme.example",
        "default_organization_id": _ORGANIZATION,
        "organizations": [{"id": _ORGANIZATION, "slug": "acme", "name": "Acme Law", "role": "owner"}],
    },
    "usage_summary": [_USAGE_LINE],
    "void_usage_event": [{"void_id": _VOID, "already": False}],
}
