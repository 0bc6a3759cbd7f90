"""predictions, feedback, audit."""

import sqlalchemy as sa

from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels = None
depends_on = None

# One statement each. Without a row in sight too, so that an attempt never looks as if it had worked.
_APPEND_ONLY = {
    "postgresql": (
        """
        create function refuse_change() returns trigger language plpgsql as $$
        begin
            raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
        end
        $$
        """,
        """
        create trigger audit_is_append_only before update or delete or truncate on audit
        for each statement execute function refuse_change()
        """,
    ),
    "sqlite": (
        """
        create trigger audit_refuses_update before update on audit
        begin select raise(abort, 'audit is append-only'); end
        """,
        """
        create trigger audit_refuses_delete before delete on audit
        begin select raise(abort, 'audit is append-only'); end
        """,
        # INSERT OR REPLACE deletes without a trigger; the very same row again is no change.
        """
        create trigger audit_refuses_replace before insert on audit
        when exists (
            select 1 from audit where id = new.id and
            (at, principal, action, subject, "before", "after")
            is not (new.at, new.principal, new.action, new.subject, new."before", new."after")
        )
        begin select raise(abort, 'audit is append-only'); end
        """,
    ),
}


def upgrade() -> None:
    """To this revision."""
    op.create_table(
        "predictions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("output", sa.JSON(), nullable=True),
        sa.Column("label", sa.Text(), nullable=True),
        sa.Column("probabilities", sa.JSON(), nullable=True),
        sa.Column("latency_ms", sa.Double(), nullable=False),
        sa.Column("cached", sa.Boolean(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
    )
    op.create_index("ix_predictions_model_version_id", "predictions", ["model", "version", "id"])
    op.create_table(
        "feedback",
        sa.Column("prediction_id", sa.Uuid(), nullable=False),
        sa.Column("truth", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("revisions", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("prediction_id", name="pk_feedback"),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("before", sa.JSON(), nullable=True),
        sa.Column("after", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    for statement in _APPEND_ONLY[op.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    """Back to an empty database."""
    op.drop_table("audit")
    if op.get_context().dialect.name == "postgresql":
        op.execute("drop function refuse_change()")
    op.drop_table("feedback")
    op.drop_index("ix_predictions_model_version_id", table_name="predictions")
    op.drop_table("predictions")
