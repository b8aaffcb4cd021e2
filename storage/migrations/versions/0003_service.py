"""What the service keeps: jobs, tokens, who changed what, and answers to requests that may be sent again."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the four tables."""
    op.create_table(
        "mergefront_job",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(32), nullable=False, unique=True),
        sa.Column("study", sa.String(200), nullable=False, index=True),
        sa.Column("slot", sa.String(200), unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("token", sa.String(32)),
        sa.Column("held_until", sa.Double),
        sa.Column("progress", sa.JSON, nullable=False),
        sa.Column("ended", sa.String(32)),
        sa.Column("code", sa.Integer),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_table(
        "mergefront_token",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(100), nullable=False, unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("revoked", sa.String(32)),
    )
    op.create_table(
        "mergefront_audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("created", sa.String(32), nullable=False),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("address", sa.String(100), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("about", sa.String(200), nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
    )
    op.create_table(
        "mergefront_request",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("who", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("answer", sa.JSON, nullable=False),
        sa.UniqueConstraint("who", "key", name="uq_mergefront_request_who_key"),
    )
