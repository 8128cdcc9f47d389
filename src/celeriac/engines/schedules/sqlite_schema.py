"""The tables of schedules in an SQLite file."""

from __future__ import annotations

SCHEMA: tuple[str, ...] = (
    # The first eight columns are what people may write by hand. A new row is due at once, and then planned by whoever looks.
    """
    CREATE TABLE schedules (
        name TEXT PRIMARY KEY,
        schedule TEXT NOT NULL,
        task TEXT NOT NULL,
        args TEXT NOT NULL DEFAULT '[]',
        kwargs TEXT NOT NULL DEFAULT '{}',
        options TEXT NOT NULL DEFAULT '{}',
        policy TEXT NOT NULL DEFAULT '{}',
        enabled INTEGER NOT NULL DEFAULT 1,
        source TEXT NOT NULL DEFAULT '',
        version INTEGER NOT NULL DEFAULT 0,
        planned_at REAL,
        due_at REAL DEFAULT 0,
        resumed INTEGER NOT NULL DEFAULT 0,
        queued_at REAL,
        last_planned_at REAL,
        last_run_at REAL,
        last_message_id TEXT,
        total_run_count INTEGER NOT NULL DEFAULT 0
    )
    """,
    "CREATE INDEX schedules_due ON schedules (due_at) WHERE due_at IS NOT NULL",
    "CREATE INDEX schedules_source ON schedules (source, name)",
    # Every change of ours gives the row a new version; so one that does not was made by hand.
    """
    CREATE TRIGGER schedules_changed_by_hand AFTER UPDATE ON schedules WHEN NEW.version = OLD.version
    BEGIN
        UPDATE schedules SET
            version = version + 1,
            planned_at = CASE WHEN NEW.schedule IS OLD.schedule THEN planned_at END,
            queued_at = CASE WHEN NEW.schedule IS OLD.schedule THEN queued_at END,
            due_at = CASE WHEN NEW.enabled THEN 0 END,
            resumed = CASE WHEN NEW.enabled AND NOT OLD.enabled THEN 1 ELSE resumed END
        WHERE name = NEW.name;
    END
    """,
    """
    CREATE TRIGGER schedules_made_by_hand AFTER INSERT ON schedules WHEN NOT NEW.enabled AND NEW.due_at IS NOT NULL
    BEGIN
        UPDATE schedules SET version = version + 1, due_at = NULL WHERE name = NEW.name;
    END
    """,
    """
    CREATE TABLE ledger (
        n INTEGER PRIMARY KEY,
        entry TEXT NOT NULL,
        planned_at REAL NOT NULL,
        outcome TEXT NOT NULL,
        due_at REAL NOT NULL,
        fired_at REAL NOT NULL,
        message_id TEXT,
        why TEXT NOT NULL,
        occurrences INTEGER NOT NULL,
        until REAL,
        suppressed INTEGER NOT NULL,
        message BLOB
    )
    """,
    "CREATE UNIQUE INDEX ledger_occurrence ON ledger (entry, planned_at)",
    "CREATE INDEX ledger_planned ON ledger (planned_at)",
    "CREATE INDEX ledger_kept ON ledger (message_id) WHERE message IS NOT NULL",
)
