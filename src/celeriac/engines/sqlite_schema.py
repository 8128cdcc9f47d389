"""What the SQLite engine asks of its file: the tables, how older files come by them, and the named statements."""

from __future__ import annotations

from . import sqlite_joins, sqlite_steps
from .schedules.sqlite_schema import SCHEMA as SCHEDULES

APPLICATION_ID = 0x43454C59
"""Marks a file as ours (`CELY`)."""
PAGE_BYTES = 2048
"""Of a new file. Most transactions change a little in each of three to five pages, and whole pages are what is written: with SQLite's
own 4096 a publish takes a quarter longer."""
PRAGMAS = (
    "PRAGMA cache_size = -8000",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA secure_delete = OFF",
    "PRAGMA wal_autocheckpoint = 4000",
    "PRAGMA journal_size_limit = 16777216",
)
PROMOTE_LIMIT = 1000
"""How many messages that came due one `reserve` promotes, so that a million of them stop nobody."""

READY, SCHEDULED, LEASED = 0, 1, 2
STATES = ("ready", "scheduled", "leased")

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # `at` is the place in the queue: since when the message is ready, or will be. `taken` orders what a node holds. The message comes last,
        # so that nobody reads through megabytes to get at the rest.
        """
        CREATE TABLE messages (
            n INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            queue TEXT NOT NULL,
            priority INTEGER NOT NULL,
            state INTEGER NOT NULL,
            at REAL NOT NULL,
            due REAL,
            task TEXT NOT NULL,
            node TEXT,
            process INTEGER,
            taken INTEGER,
            token INTEGER NOT NULL DEFAULT 0,
            crashes INTEGER NOT NULL DEFAULT 0,
            interruptions INTEGER NOT NULL DEFAULT 0,
            revocation BLOB,
            message BLOB NOT NULL
        )
        """,
        "CREATE INDEX messages_ready ON messages (queue, priority DESC, at) WHERE state = 0",
        "CREATE INDEX messages_scheduled ON messages (queue, due) WHERE state = 1",
        "CREATE INDEX messages_leased ON messages (node, process, taken) WHERE state = 2",
        "CREATE INDEX messages_revoked ON messages (id) WHERE revocation IS NOT NULL",
        """
        CREATE TABLE results (
            n INTEGER PRIMARY KEY,
            task_id TEXT NOT NULL UNIQUE,
            status TEXT NOT NULL,
            stored REAL NOT NULL,
            record BLOB NOT NULL
        )
        """,
        """
        CREATE TABLE dead (
            n INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            queue TEXT NOT NULL,
            priority INTEGER NOT NULL,
            at REAL NOT NULL,
            died REAL NOT NULL,
            task TEXT NOT NULL,
            token INTEGER NOT NULL,
            crashes INTEGER NOT NULL,
            interruptions INTEGER NOT NULL,
            reason TEXT NOT NULL,
            message BLOB NOT NULL
        )
        """,
        "CREATE INDEX dead_queue ON dead (queue)",
        "CREATE TABLE nodes (id TEXT PRIMARY KEY, boot TEXT NOT NULL, until REAL NOT NULL, node BLOB NOT NULL) WITHOUT ROWID",
        "CREATE TABLE letters (n INTEGER PRIMARY KEY, address TEXT NOT NULL, at REAL NOT NULL, letter BLOB NOT NULL)",
        "CREATE INDEX letters_address ON letters (address)",
        "CREATE TABLE revokes (id TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID",
        "CREATE TABLE paused (queue TEXT PRIMARY KEY, by TEXT NOT NULL) WITHOUT ROWID",
    ),
    sqlite_joins.SCHEMA,
    SCHEDULES,
    sqlite_steps.SCHEMA,
)
"""What leads from each version of the schema to the next."""

PUBLISH = (
    "INSERT INTO messages (id, queue, priority, state, at, due, task, token, message) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT (id) DO NOTHING"
)
GATE = (
    "SELECT EXISTS (SELECT 1 FROM paused), EXISTS (SELECT 1 FROM revokes), (SELECT min(due) FROM messages WHERE state = 1 AND queue = ?)"
    " FROM nodes WHERE id = ?"
)
PROMOTE = (
    "UPDATE messages SET state = 0, due = NULL WHERE n IN"
    f" (SELECT n FROM messages WHERE state = 1 AND queue = ? AND due <= ? ORDER BY due LIMIT {PROMOTE_LIMIT})"
)
FIRST_DUE = "SELECT min(due) FROM messages WHERE state = 1 AND queue = ?"
READY_KEYS = "SELECT -priority, at, n, queue FROM messages WHERE state = 0 AND queue = ? ORDER BY priority DESC, at, n LIMIT ?"
READY_ROWS = (
    "SELECT n, id, queue, token + 1, crashes, interruptions, at, message FROM messages"
    " WHERE state = 0 AND queue = ? ORDER BY priority DESC, at, n LIMIT ?"
)
ROW = "SELECT n, id, queue, token + 1, crashes, interruptions, at, message FROM messages WHERE n = ?"
REVOKED = "SELECT 1 FROM revokes WHERE id = ? AND until > ?"
LEASE = "UPDATE messages SET state = 2, node = ?, process = ?, taken = ?, token = token + 1 WHERE n IN ({})"
HELD = (
    "SELECT n, id, queue, token, crashes, interruptions, at, message, process, revocation FROM messages"
    " WHERE state = 2 AND node = ? ORDER BY taken, priority DESC, at, n"
)
OUTLOOK = (
    "SELECT EXISTS (SELECT 1 FROM messages WHERE state = 0 AND queue = :queue), (SELECT min(due) FROM messages WHERE state = 1 AND queue = :queue)"
    " WHERE NOT EXISTS (SELECT 1 FROM paused WHERE queue = :queue)"
)
REMOVE = "DELETE FROM messages WHERE n = ? AND id = ? AND node = ? AND process = ? AND token = ?"
FENCED = "SELECT n, revocation FROM messages WHERE id = ? AND state = 2 AND node = ? AND process = ? AND token = ?"
GIVE_BACK = (
    "UPDATE messages SET state = ?, due = ?, crashes = crashes + ?, interruptions = interruptions + ?,"
    " node = NULL, process = NULL, taken = NULL WHERE n = ?"
)
REWRITE = "UPDATE messages SET queue = ?, priority = ?, task = ?, message = ? WHERE n = ?"
BURY = (
    "INSERT OR REPLACE INTO dead (id, queue, priority, at, died, task, token, crashes, interruptions, reason, message)"
    " SELECT id, queue, priority, at, ?, task, token, crashes, interruptions, ?, message FROM messages WHERE n = ?"
)
# Every record comes last, one that replaces another too; so the oldest come first, and no index by age is needed.
STORE = "INSERT OR REPLACE INTO results (task_id, status, stored, record) VALUES (?, ?, ?, ?)"
STORED_STATUS = "SELECT status FROM results WHERE task_id = ?"
# The wall clock may have been set back: what claims to come from the future was stored now.
PRUNE_FUTURE = "UPDATE results SET stored = ? WHERE stored > ? AND n IN (SELECT n FROM results ORDER BY n LIMIT ?)"
PRUNE = "DELETE FROM results WHERE stored < ? AND n IN (SELECT n FROM results ORDER BY n LIMIT ?)"

_FIELDS = "id, queue, {state}, {due}, at, priority, n, {node}, {process}, crashes, interruptions, {reason}, {died}, message"
WAITING = _FIELDS.format(state="state", due="due", node="node", process="process", reason="''", died="NULL") + " FROM messages"
DEAD = _FIELDS.format(state="3", due="NULL", node="NULL", process="NULL", reason="reason", died="died") + " FROM dead"
PEEK = {
    # The due ones that nobody promoted yet are few; so they alone are sorted, and the others come as the index has them.
    "ready": (
        f"SELECT * FROM (SELECT * FROM (SELECT {WAITING} WHERE state = 0 AND queue = :queue ORDER BY priority DESC, at, n LIMIT :stop)"
        f" UNION ALL SELECT * FROM (SELECT {WAITING} WHERE state = 1 AND queue = :queue AND due <= :now ORDER BY priority DESC, at, n LIMIT :stop))"
        " ORDER BY priority DESC, at, n LIMIT :limit OFFSET :offset"
    ),
    "scheduled": f"SELECT {WAITING} WHERE state = 1 AND queue = :queue AND due > :now ORDER BY due, n LIMIT :limit OFFSET :offset",
    "leased": f"SELECT {WAITING} WHERE state = 2 AND queue = :queue ORDER BY priority DESC, at, n LIMIT :limit OFFSET :offset",
    "dead": f"SELECT {DEAD} WHERE queue = :queue ORDER BY n DESC LIMIT :limit OFFSET :offset",
}
COUNTS = (
    "SELECT (SELECT count(*) FROM messages WHERE state = 0 AND queue = :queue),"
    " (SELECT count(*) FROM messages WHERE state = 1 AND queue = :queue AND due <= :now),"
    " (SELECT count(*) FROM messages WHERE state = 1 AND queue = :queue AND due > :now),"
    " (SELECT count(*) FROM dead WHERE queue = :queue),"
    " (SELECT by FROM paused WHERE queue = :queue)"
)
LEASED_COUNTS = "SELECT queue, count(*) FROM messages WHERE state = 2 GROUP BY queue"
AHEAD = (
    "SELECT (SELECT count(*) FROM messages WHERE state = 0 AND queue = :queue AND priority > :priority)"
    " + (SELECT count(*) FROM messages WHERE state = 0 AND queue = :queue AND priority = :priority AND (at, n) < (:at, :n))"
    " + (SELECT count(*) FROM messages WHERE state = 1 AND queue = :queue AND due <= :now AND (-priority, at, n) < (-:priority, :at, :n))"
)
PLACES = (
    "SELECT id, row_number() OVER (ORDER BY priority DESC, at, n) - 1 FROM messages"
    " WHERE queue = :queue AND (state = 0 OR state = 1 AND due <= :now)"
)
# Steps from name to name through the index instead of reading all its rows.
QUEUES = """
    WITH RECURSIVE
        ready (queue) AS (
            SELECT min(queue) FROM messages WHERE state = 0
            UNION ALL SELECT (SELECT min(queue) FROM messages WHERE state = 0 AND queue > ready.queue) FROM ready WHERE ready.queue IS NOT NULL
        ),
        scheduled (queue) AS (
            SELECT min(queue) FROM messages WHERE state = 1
            UNION ALL SELECT (SELECT min(queue) FROM messages WHERE state = 1 AND queue > scheduled.queue) FROM scheduled WHERE scheduled.queue IS NOT NULL
        )
    SELECT queue FROM ready WHERE queue IS NOT NULL
    UNION SELECT queue FROM scheduled WHERE queue IS NOT NULL
    UNION SELECT queue FROM messages WHERE state = 2
    UNION SELECT queue FROM dead
    UNION SELECT queue FROM paused
    ORDER BY queue
"""
