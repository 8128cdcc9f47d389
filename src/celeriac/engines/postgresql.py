"""The engine of one PostgreSQL database (13 or newer), in a schema of its own.

    storage    tables in the schema `celeriac` (option `schema`): a row for each message that waits or is leased, one for each record, dead letter, node and letter
    a crash    of a client loses nothing that a verb had answered. `publish`, `store`, `revoke` and the like commit durably, as `synchronous_commit` of the
               server has it; `reserve` and `settle` commit asynchronously: a crash of the server may undo the last moments of them (3 × `wal_writer_delay`), and what was
               settled then runs again, with its result and its follow-ups undone as well
    order      priority, then how long it has waited, then the order of publishing
    atomic     every verb is one transaction, and the busy ones are one trip: a function of the schema does the rest. Workers pass each other by (`SKIP LOCKED`)
    waiting    who waits holds an advisory lock (shared) on what he waits for, on the one connection that listens. Who publishes tries that lock: when he gets it nobody waits,
               and nothing is sent; else `pg_locks` names the backends that wait and as many are notified as there are messages. So NOTIFY, which makes commits stand in line, is
               used only when somebody sleeps. Looks at growing distances, up to a second, are the net. With `listen=false` (PgBouncer in transaction mode) there are only looks
    clocks     the server's, for everything: setting it forward ends leases. The times of a clock that was injected go before it
    cannot     keep ids and queue names that take more than some 2,700 bytes when compressed, since they are indexed

The client is libpq itself through `psycopg.pq`, not a cursor: that saves half of a verb's Python, and gives each verb a deadline of its own, also while it connects.
A connection must not live through a fork: a child closes its copy without a word to the server, and opens its own.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, urlencode
from weakref import WeakSet

import msgspec

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.mailbox import Letter, Node
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import EncodeError, EngineCorrupt, EngineUnavailable, ImproperlyConfigured, NodeLost
from ..core.message import Delivery, Holder, Lease, Message, Record, Revocation, Settlement, Verdict
from ..core.states import READY_STATES

if TYPE_CHECKING:
    from psycopg import pq

    from ..contracts.engine import Engine
    from ..contracts.results import Subscription

# -- settings ----------------------------------------------------------------------------------------------------

LETTER_SECONDS = 60.0
"""How long a letter waits for its reader."""
LOOKS_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""After so long a waiter looks for himself. The first looks find what was committed just as he lay down; the last is the net."""
PURGE_LIMIT = 5000
"""How many rows one transaction of `purge` removes."""
WIDE_SUBSCRIPTION = 50
"""A wait for more results than this is told about every result."""
FAILURES_BEFORE_REST = 3
"""After so many failures in a row to reach the server, verbs fail at once, but for one probe in each `PROBE_SECONDS`."""
PROBE_SECONDS = 1.0
DOUBT_SECONDS = 600.0
"""How long an engine remembers what it published without hearing an answer."""
TOMB_SECONDS = 900.0
"""How long it can be told that a message without a result has been there: longer than any doubt."""

WIDE_LOOK_SECONDS = 0.25
"""How often a busy worker looks for what was given back by others (see `take`)."""
LATE_COMMIT_SECONDS = 0.05
"""A message that was published earlier may become visible so much later than its neighbours."""
VACUUM_ROWS = 20_000
"""So many dead rows are swept out by whoever prunes, without waiting for the server's autovacuum."""

OPTIONS: dict[str, tuple[Callable[[Any], Any], Any]] = {}
"""Name → how to read it, default. Filled in below, by the helpers that read."""

# -- SQL -----------------------------------------------------------------------------------------------------------

READY, SCHEDULED, LEASED = 0, 1, 2
_STATES = ("ready", "scheduled", "leased", "dead")
_VERDICTS = {Verdict.DONE: 0, Verdict.RETRY: 1, Verdict.RELEASED: 2, Verdict.CRASHED: 3, Verdict.DEAD: 4}

TABLES = """
    CREATE TABLE {s}.version (version int NOT NULL);
    INSERT INTO {s}.version VALUES (0);

    -- `at` is the place in the queue: since when the message is ready, or will be. `n` orders what came in one moment, `taken` what a node holds. All indexes but the
    -- first are partial: a row is in one of them, and what waits for next year is in none that a worker reads.
    CREATE TABLE {s}.messages (
        id text COLLATE "C" PRIMARY KEY,
        n bigint GENERATED BY DEFAULT AS IDENTITY,
        at float8 NOT NULL,
        due float8,
        taken bigint,
        process int,
        token int NOT NULL DEFAULT 0,
        crashes int NOT NULL DEFAULT 0,
        interruptions int NOT NULL DEFAULT 0,
        priority smallint NOT NULL,
        state smallint NOT NULL,
        revoked boolean NOT NULL DEFAULT false,
        queue text COLLATE "C" NOT NULL,
        node text COLLATE "C",
        end_status text,
        end_record bytea,
        message bytea NOT NULL
    ) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
            autovacuum_analyze_scale_factor = 0.2, autovacuum_analyze_threshold = 20000, toast.autovacuum_vacuum_cost_delay = 0);
    CREATE INDEX messages_ready ON {s}.messages (queue, priority DESC, at, n) WHERE state = 0;
    CREATE INDEX messages_scheduled ON {s}.messages (queue, due) WHERE state = 1;
    CREATE INDEX messages_leased ON {s}.messages (node, taken) WHERE state = 2;
    CREATE INDEX messages_revoked ON {s}.messages (id) WHERE revoked;
    CREATE SEQUENCE {s}.taken;

    -- `version` changes whenever the record does.
    CREATE TABLE {s}.results (
        task_id text COLLATE "C" PRIMARY KEY,
        version bigint GENERATED BY DEFAULT AS IDENTITY,
        stored float8 NOT NULL,
        ready boolean NOT NULL,
        status text NOT NULL,
        record bytea NOT NULL
    ) WITH (fillfactor = 95, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
    CREATE INDEX results_stored ON {s}.results (stored);

    CREATE TABLE {s}.dead (
        id text COLLATE "C" PRIMARY KEY,
        n bigint GENERATED BY DEFAULT AS IDENTITY,
        at float8 NOT NULL,
        died float8 NOT NULL,
        token int NOT NULL,
        crashes int NOT NULL,
        interruptions int NOT NULL,
        priority smallint NOT NULL,
        queue text COLLATE "C" NOT NULL,
        reason text NOT NULL,
        message bytea NOT NULL
    );
    CREATE INDEX dead_queue ON {s}.dead (queue, n);

    -- Half empty pages: a heartbeat changes a row and no index, and stays on its page.
    CREATE TABLE {s}.nodes (id text COLLATE "C" PRIMARY KEY, until float8 NOT NULL, node bytea NOT NULL) WITH (fillfactor = 50);
    CREATE TABLE {s}.letters (n bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, at float8 NOT NULL, address text COLLATE "C" NOT NULL, letter bytea NOT NULL);
    CREATE INDEX letters_address ON {s}.letters (address);
    CREATE TABLE {s}.revokes (id text COLLATE "C" PRIMARY KEY, until float8 NOT NULL);
    CREATE TABLE {s}.paused (queue text COLLATE "C" PRIMARY KEY, by text NOT NULL);

    -- The ids of what was settled without a result, a row for each batch: whoever published and heard no answer can tell from it that his message has been here.
    CREATE TABLE {s}.tombs (at float8 NOT NULL, ids text[] NOT NULL);
    CREATE INDEX tombs_at ON {s}.tombs (at);
"""

FUNCTIONS = """
    CREATE FUNCTION {s}.now() RETURNS float8 LANGUAGE sql VOLATILE AS $$ SELECT extract(epoch FROM clock_timestamp())::float8 $$;

    -- What stands for a thing that is waited for, among the advisory locks of the database: `q` and a queue, `r` and a task, `r*` any result, `b` and an address, `h` and a holder.
    CREATE FUNCTION {s}.key(p_name text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT hashtextextended(p_name, {seed}) $$;

    -- Wakes up to `p_count` of those who wait for the key.
    CREATE FUNCTION {s}.ring_key(p_key bigint, p_count int) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF pg_try_advisory_lock(p_key) THEN
            PERFORM pg_advisory_unlock(p_key);
            RETURN;
        END IF;
        PERFORM pg_notify('celeriac_' || w.pid, p_key || ' ' || greatest(1, p_count / greatest(1, w.all_of_them)))
        FROM (
            SELECT l.pid, count(*) OVER () AS all_of_them FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ShareLock'
            AND l.classid = ((p_key >> 32) & 4294967295)::oid AND l.objid = (p_key & 4294967295)::oid
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
            ORDER BY random() LIMIT p_count
        ) w;
    END $$;

    CREATE FUNCTION {s}.ring_results(p_ids text[]) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF pg_try_advisory_lock({s}.key('r')) THEN
            PERFORM pg_advisory_unlock({s}.key('r'));
            RETURN;
        END IF;
        PERFORM pg_notify('celeriac_' || l.pid, k.key || ' 1000000')
        FROM (SELECT {s}.key('r' || i) AS key FROM unnest(p_ids) i UNION SELECT {s}.key('r*')) k
        JOIN pg_locks l ON l.classid = ((k.key >> 32) & 4294967295)::oid AND l.objid = (k.key & 4294967295)::oid
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.mode = 'ShareLock'
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database());
    END $$;

    -- → ready or scheduled. With `p_doubt_since`, ids that have been here since then are left out. `p_lock_ms` null: in somebody else's transaction, whose end nobody knows.
    CREATE FUNCTION {s}.publish(
        p_ids text[], p_queues text[], p_priorities smallint[], p_delays float8[], p_etas float8[], p_bodies bytea[],
        p_now float8, p_lock_ms int, p_doubt_seconds float8
    ) RETURNS int LANGUAGE plpgsql AS $$
    DECLARE
        v_now float8 := coalesce(p_now, extract(epoch FROM clock_timestamp())::float8);
        v_due float8;
        v_queue text;
        v_count int;
        v_held int;
    BEGIN
        IF p_lock_ms IS NOT NULL THEN
            PERFORM set_config('lock_timeout', p_lock_ms::text, true);
        END IF;
        IF p_doubt_seconds IS NULL AND cardinality(p_ids) = 1 THEN
            v_due := coalesce(v_now + p_delays[1], p_etas[1]);
            INSERT INTO {s}.messages (id, queue, priority, state, at, due, message) VALUES (
                p_ids[1], p_queues[1], p_priorities[1], CASE WHEN v_due > v_now THEN 1 ELSE 0 END,
                CASE WHEN v_due > v_now THEN v_due ELSE v_now END, CASE WHEN v_due > v_now THEN v_due END, p_bodies[1]
            ) ON CONFLICT (id) DO NOTHING;
            GET DIAGNOSTICS v_held = ROW_COUNT;
        ELSE
            INSERT INTO {s}.messages (id, queue, priority, state, at, due, message)
            SELECT m.id, m.queue, m.priority, CASE WHEN m.due > v_now THEN 1 ELSE 0 END,
                CASE WHEN m.due > v_now THEN m.due ELSE v_now END, CASE WHEN m.due > v_now THEN m.due END, m.body
            FROM (
                SELECT u.*, coalesce(v_now + u.delay, u.eta) AS due
                FROM unnest(p_ids, p_queues, p_priorities, p_delays, p_etas, p_bodies) WITH ORDINALITY u (id, queue, priority, delay, eta, body, place)
            ) m
            WHERE p_doubt_seconds IS NULL OR NOT (
                EXISTS (SELECT FROM {s}.results r WHERE r.task_id = m.id AND r.stored >= v_now - p_doubt_seconds)
                OR EXISTS (SELECT FROM {s}.dead d WHERE d.id = m.id AND d.died >= v_now - p_doubt_seconds)
                OR EXISTS (SELECT FROM {s}.tombs t WHERE t.at >= v_now - p_doubt_seconds AND m.id = ANY (t.ids))
            )
            ORDER BY m.place
            ON CONFLICT (id) DO NOTHING;
            GET DIAGNOSTICS v_held = ROW_COUNT;
        END IF;
        IF v_held > 0 AND cardinality(p_queues) = 1 THEN
            IF v_due IS NULL OR v_due < v_now + 2 THEN
                v_queue := p_queues[1];
                IF p_lock_ms IS NULL THEN
                    PERFORM pg_notify('celeriac_all', {s}.key('q' || v_queue) || ' 1');
                ELSE
                    PERFORM {s}.ring_key({s}.key('q' || v_queue), 1);
                END IF;
            END IF;
        ELSIF v_held > 0 THEN
            FOR v_queue, v_count IN
                SELECT u.queue, count(*) FROM unnest(p_queues, p_delays, p_etas) u (queue, delay, eta)
                WHERE coalesce(v_now + u.delay, u.eta, 0) < v_now + 2 GROUP BY u.queue
            LOOP
                IF p_lock_ms IS NULL THEN
                    PERFORM pg_notify('celeriac_all', {s}.key('q' || v_queue) || ' ' || v_count);
                ELSE
                    PERFORM {s}.ring_key({s}.key('q' || v_queue), v_count);
                END IF;
            END LOOP;
        END IF;
        RETURN v_held;
    END $$;

    -- The busy functions steer the planner: statistics of a queue are always out of date, and a plan that was made while it was empty reads the whole table when it is not.
    CREATE FUNCTION {s}.steer() RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM set_config('synchronous_commit', 'off', true), set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
            set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
            set_config('plan_cache_mode', 'force_generic_plan', true);
    END $$;

    CREATE FUNCTION {s}.due(p_queue text, p_now float8) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE {s}.messages m SET state = 0, due = NULL
        FROM (
            SELECT s.ctid AS place FROM {s}.messages s WHERE s.state = 1 AND s.queue = p_queue AND s.due <= p_now ORDER BY s.due LIMIT 1000 FOR UPDATE SKIP LOCKED
        ) s WHERE m.ctid = s.place;
    END $$;

    -- ready → leased. `kind` is 1; refused settlements of `exchange` have kind 0 and an id. What has been taken leaves dead entries at the head of the index until the next
    -- VACUUM, more than are alive: `p_floors` (ten for each queue, by priority) say from where on to look. What was given back meanwhile lies below; so the caller
    -- leaves them out every now and then, and they are not kept to when there is nothing above.
    CREATE FUNCTION {s}.take(p_node text, p_process int, p_queues text[], p_limit int, p_floors float8[], p_now float8)
    RETURNS TABLE (kind int, id text, queue text, token int, crashes int, interruptions int, at float8, revoked boolean, now float8, message bytea)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    DECLARE
        v_now float8 := coalesce(p_now, extract(epoch FROM clock_timestamp())::float8);
        v_queues text[] := p_queues;
        v_queue text;
        v_taken bigint;
        v_revokes boolean;
        v_found int;
        v_chosen text[];
        v_places tid[];
        v_wide boolean;
    BEGIN
        IF NOT EXISTS (SELECT FROM {s}.nodes n WHERE n.id = p_node) THEN
            RAISE EXCEPTION 'node lost' USING ERRCODE = 'CLN01';
        END IF;
        IF p_limit <= 0 THEN
            RETURN;
        END IF;
        -- Whoever asks what a dead process holds waits for what it had asked for last.
        PERFORM pg_advisory_xact_lock_shared({s}.key('h' || p_process || ' ' || p_node));
        IF EXISTS (SELECT FROM {s}.paused) THEN
            v_queues := ARRAY (SELECT q FROM unnest(p_queues) q WHERE NOT EXISTS (SELECT FROM {s}.paused p WHERE p.queue = q));
        END IF;
        FOREACH v_queue IN ARRAY v_queues LOOP
            IF EXISTS (SELECT FROM {s}.messages m WHERE m.state = 1 AND m.queue = v_queue AND m.due <= v_now) THEN
                PERFORM {s}.due(v_queue, v_now);
            END IF;
        END LOOP;
        v_revokes := EXISTS (SELECT FROM {s}.revokes);
        v_taken := nextval('{s}.taken') << 20;
        v_wide := p_floors IS NULL OR cardinality(v_queues) <> cardinality(p_queues);
        FOR v_try IN 1..4 LOOP
            IF v_wide AND cardinality(v_queues) = 1 THEN
                v_queue := v_queues[1];
                v_places := ARRAY (
                    SELECT m.ctid FROM {s}.messages m WHERE m.state = 0 AND m.queue = v_queue
                    ORDER BY m.priority DESC, m.at, m.n LIMIT p_limit FOR UPDATE SKIP LOCKED
                );
                EXIT;
            ELSIF cardinality(v_queues) = 1 THEN
                v_queue := v_queues[1];
                v_places := ARRAY (
                    SELECT c.place FROM generate_series(9, 0, -1) p (priority) CROSS JOIN LATERAL (
                        SELECT m.ctid AS place FROM {s}.messages m
                        WHERE m.state = 0 AND m.queue = v_queue AND m.priority = p.priority AND m.at >= p_floors[p.priority + 1]
                        ORDER BY m.at, m.n LIMIT p_limit FOR UPDATE SKIP LOCKED
                    ) c LIMIT p_limit
                );
            ELSE
                -- The best of all queues together; those that somebody else is about to take are passed by, so more are looked at than are wanted.
                IF v_wide THEN
                    v_chosen := ARRAY (
                        SELECT b.id FROM unnest(v_queues) q CROSS JOIN LATERAL (
                            SELECT m.id, m.priority, m.at, m.n FROM {s}.messages m WHERE m.state = 0 AND m.queue = q
                            ORDER BY m.priority DESC, m.at, m.n LIMIT 4 * p_limit
                        ) b ORDER BY b.priority DESC, b.at, b.n LIMIT 4 * p_limit
                    );
                ELSE
                    v_chosen := ARRAY (
                        SELECT c.id FROM generate_series(9, 0, -1) p (priority) CROSS JOIN LATERAL (
                            SELECT b.id FROM unnest(v_queues) WITH ORDINALITY q (name, number) CROSS JOIN LATERAL (
                                SELECT m.id, m.at, m.n FROM {s}.messages m
                                WHERE m.state = 0 AND m.queue = q.name AND m.priority = p.priority AND m.at >= p_floors[10 * (q.number - 1) + p.priority + 1]
                                ORDER BY m.at, m.n LIMIT 4 * p_limit
                            ) b ORDER BY b.at, b.n LIMIT 4 * p_limit
                        ) c LIMIT 4 * p_limit
                    );
                END IF;
                v_places := ARRAY (
                    SELECT m.ctid FROM unnest(v_chosen) WITH ORDINALITY c (id, number) JOIN {s}.messages m ON m.id = c.id
                    WHERE m.state = 0 ORDER BY c.number LIMIT p_limit FOR UPDATE OF m SKIP LOCKED
                );
                EXIT WHEN v_wide AND cardinality(v_chosen) = 0;
            END IF;
            EXIT WHEN cardinality(v_places) > 0;
            v_wide := true;
        END LOOP;
        v_found := cardinality(v_places);
        IF v_found > 0 THEN
            RETURN QUERY
            WITH leased AS (
                UPDATE {s}.messages m SET state = 2, node = p_node, process = p_process, taken = v_taken + o.number, token = m.token + 1
                FROM unnest(v_places) WITH ORDINALITY o (place, number) WHERE m.ctid = o.place
                RETURNING m.taken, m.id, m.queue, m.token, m.crashes, m.interruptions, m.at, m.message
            )
            SELECT 1, l.id, l.queue, l.token, l.crashes, l.interruptions, l.at,
                CASE WHEN v_revokes THEN EXISTS (SELECT FROM {s}.revokes r WHERE r.id = l.id AND r.until > v_now) ELSE false END, v_now, l.message
            FROM leased l ORDER BY l.taken;
        END IF;
        IF v_found = p_limit THEN
            -- Who leaves ready work behind wakes the next.
            FOREACH v_queue IN ARRAY v_queues LOOP
                IF pg_try_advisory_lock({s}.key('q' || v_queue)) THEN
                    PERFORM pg_advisory_unlock({s}.key('q' || v_queue));
                ELSIF EXISTS (SELECT FROM {s}.messages m WHERE m.state = 0 AND m.queue = v_queue) THEN
                    PERFORM {s}.ring_key({s}.key('q' || v_queue), 1);
                END IF;
            END LOOP;
        END IF;
    END $$;

    -- Keeps records, all of different tasks. Returns the ids of those that were kept.
    CREATE FUNCTION {s}.keep(p_ids text[], p_statuses text[], p_ready boolean[], p_records bytea[], p_now float8) RETURNS text[] LANGUAGE plpgsql AS $$
    DECLARE
        v_kept text[];
    BEGIN
        WITH kept AS (
            INSERT INTO {s}.results AS r (task_id, stored, ready, status, record)
            SELECT u.id, p_now, u.ready, u.status, u.record FROM unnest(p_ids, p_statuses, p_ready, p_records) u (id, status, ready, record)
            ON CONFLICT (task_id) DO UPDATE SET version = excluded.version, stored = excluded.stored, ready = excluded.ready, status = excluded.status, record = excluded.record
            WHERE excluded.ready OR NOT r.ready
            RETURNING r.task_id
        )
        SELECT array_agg(k.task_id) INTO v_kept FROM kept k;
        IF v_kept IS NOT NULL THEN
            PERFORM {s}.ring_results(v_kept);
        END IF;
        RETURN v_kept;
    END $$;

    -- A lease is known by its node, which nothing else has: `state = 2` is not asked for, since then the planner would look through all that the node ever held.
    -- All are DONE, held by one holder, nothing follows, and no id comes twice. `p_limit` null: only settle.
    CREATE FUNCTION {s}.exchange_done(
        p_holder text, p_holder_process int, p_ids text[], p_tokens int[], p_record_ids text[], p_statuses text[], p_ready boolean[], p_records bytea[], p_silent text[],
        p_node text, p_process int, p_queues text[], p_limit int, p_floors float8[], p_now float8
    )
    RETURNS TABLE (kind int, id text, queue text, token int, crashes int, interruptions int, at float8, revoked boolean, now float8, message bytea)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    DECLARE
        v_now float8 := coalesce(p_now, extract(epoch FROM clock_timestamp())::float8);
        v_gone text[];
    BEGIN
        PERFORM {s}.steer();
        IF p_ids IS NOT NULL THEN
            WITH gone AS (
                DELETE FROM {s}.messages m USING unnest(p_ids, p_tokens) u (id, token)
                WHERE m.id = u.id AND m.token = u.token AND m.node = p_holder AND m.process = p_holder_process
                RETURNING m.id
            )
            SELECT array_agg(g.id) INTO v_gone FROM gone g;
            IF coalesce(cardinality(v_gone), 0) = cardinality(p_ids) THEN
                IF p_record_ids IS NOT NULL THEN
                    PERFORM {s}.keep(p_record_ids, p_statuses, p_ready, p_records, v_now);
                END IF;
            ELSE
                RETURN QUERY SELECT 0, u, NULL::text, 0, 0, 0, v_now, false, v_now, NULL::bytea FROM unnest(p_ids) u WHERE u <> ALL (coalesce(v_gone, '{}'));
                IF p_record_ids IS NOT NULL AND v_gone IS NOT NULL THEN
                    PERFORM {s}.keep(array_agg(u.id), array_agg(u.status), array_agg(u.ready), array_agg(u.record), v_now)
                    FROM unnest(p_record_ids, p_statuses, p_ready, p_records) u (id, status, ready, record) WHERE u.id = ANY (v_gone) HAVING count(*) > 0;
                END IF;
            END IF;
            IF p_silent IS NOT NULL THEN
                INSERT INTO {s}.tombs (at, ids) VALUES (v_now, p_silent);
            END IF;
        END IF;
        IF p_limit IS NOT NULL THEN
            RETURN QUERY SELECT t.* FROM {s}.take(p_node, p_process, p_queues, p_limit, p_floors, p_now) t;
        END IF;
    END $$;

    -- Any settlements, one after the other. Settlement i has the record r[i] and the message m[i], null where there is none; follow-ups say whose they are.
    CREATE FUNCTION {s}.exchange_each(
        s_id text[], s_node text[], s_process int[], s_token int[], s_verdict smallint[], s_delay float8[], s_reason text[],
        r_id text[], r_status text[], r_ready boolean[], r_record bytea[],
        m_queue text[], m_priority smallint[], m_delay float8[], m_eta float8[], m_body bytea[],
        f_owner int[], f_id text[], f_queue text[], f_priority smallint[], f_delay float8[], f_eta float8[], f_body bytea[],
        p_node text, p_process int, p_queues text[], p_limit int, p_floors float8[], p_now float8
    )
    RETURNS TABLE (kind int, id text, queue text, token int, crashes int, interruptions int, at float8, revoked boolean, now float8, message bytea)
    LANGUAGE plpgsql AS $$
    #variable_conflict use_column
    DECLARE
        v_now float8 := coalesce(p_now, extract(epoch FROM clock_timestamp())::float8);
        v_due float8;
        v_revoked boolean;
        v_status text;
        v_record bytea;
        v_queue text;
        v_queues text[] := '{}';
        v_silent text[] := '{}';
        v_follow int := 1;
    BEGIN
        PERFORM {s}.steer();
        FOR i IN 1..cardinality(s_id) LOOP
            IF s_token[i] IS NOT NULL THEN
                SELECT m.revoked, m.end_status, m.end_record, m.queue INTO v_revoked, v_status, v_record, v_queue FROM {s}.messages m
                WHERE m.id = s_id[i] AND m.token = s_token[i] AND m.node = s_node[i] AND m.process = s_process[i] FOR UPDATE;
                IF NOT FOUND THEN
                    RETURN QUERY SELECT 0, s_id[i], NULL::text, 0, 0, 0, v_now, false, v_now, NULL::bytea;
                    CONTINUE;
                END IF;
            END IF;
            IF r_id[i] IS NOT NULL THEN
                PERFORM {s}.keep(ARRAY[r_id[i]], ARRAY[r_status[i]], ARRAY[r_ready[i]], ARRAY[r_record[i]], v_now);
            ELSE
                v_silent := v_silent || s_id[i];
            END IF;
            IF s_token[i] IS NOT NULL THEN
                IF v_revoked AND s_verdict[i] IN (1, 2, 3) THEN
                    DELETE FROM {s}.messages m WHERE m.id = s_id[i];
                    IF v_record IS NOT NULL THEN
                        PERFORM {s}.keep(ARRAY[s_id[i]], ARRAY[v_status], ARRAY[true], ARRAY[v_record], v_now);
                    END IF;
                ELSIF s_verdict[i] = 0 THEN
                    DELETE FROM {s}.messages m WHERE m.id = s_id[i];
                ELSIF s_verdict[i] = 1 THEN
                    v_due := coalesce(v_now + m_delay[i], m_eta[i]);
                    UPDATE {s}.messages m SET state = CASE WHEN v_due > v_now THEN 1 ELSE 0 END, at = CASE WHEN v_due > v_now THEN v_due ELSE v_now END,
                        due = CASE WHEN v_due > v_now THEN v_due END, n = DEFAULT, queue = m_queue[i], priority = m_priority[i],
                        message = m_body[i], crashes = 0, interruptions = 0, node = NULL, process = NULL, taken = NULL
                    WHERE m.id = s_id[i];
                    v_queues := v_queues || m_queue[i];
                ELSIF s_verdict[i] IN (2, 3) THEN
                    v_due := CASE WHEN s_verdict[i] = 2 AND s_delay[i] > 0 THEN v_now + s_delay[i] END;
                    UPDATE {s}.messages m SET state = CASE WHEN v_due IS NULL THEN 0 ELSE 1 END, due = v_due,
                        crashes = m.crashes + (s_verdict[i] = 3)::int, interruptions = m.interruptions + (s_verdict[i] = 2)::int, node = NULL, process = NULL, taken = NULL,
                        queue = coalesce(m_queue[i], m.queue), priority = coalesce(m_priority[i], m.priority), message = coalesce(m_body[i], m.message)
                    WHERE m.id = s_id[i];
                    v_queues := v_queues || coalesce(m_queue[i], v_queue);
                ELSE
                    DELETE FROM {s}.dead d WHERE d.id = s_id[i];
                    WITH gone AS (DELETE FROM {s}.messages m WHERE m.id = s_id[i] RETURNING m.*)
                    INSERT INTO {s}.dead (id, at, died, token, crashes, interruptions, priority, queue, reason, message)
                    SELECT g.id, g.at, v_now, g.token, g.crashes, g.interruptions, g.priority, g.queue, s_reason[i], g.message FROM gone g;
                END IF;
            END IF;
            WHILE v_follow <= cardinality(f_owner) AND f_owner[v_follow] <= i LOOP
                IF f_owner[v_follow] = i THEN
                    v_due := coalesce(v_now + f_delay[v_follow], f_eta[v_follow]);
                    INSERT INTO {s}.messages (id, queue, priority, state, at, due, message) VALUES (
                        f_id[v_follow], f_queue[v_follow], f_priority[v_follow], CASE WHEN v_due > v_now THEN 1 ELSE 0 END,
                        CASE WHEN v_due > v_now THEN v_due ELSE v_now END, CASE WHEN v_due > v_now THEN v_due END, f_body[v_follow]
                    ) ON CONFLICT (id) DO NOTHING;
                    v_queues := v_queues || f_queue[v_follow];
                END IF;
                v_follow := v_follow + 1;
            END LOOP;
        END LOOP;
        IF cardinality(v_silent) > 0 THEN
            INSERT INTO {s}.tombs (at, ids) VALUES (v_now, v_silent);
        END IF;
        PERFORM {s}.ring_key({s}.key('q' || q.queue), q.number::int) FROM (SELECT u AS queue, count(*) AS number FROM unnest(v_queues) u GROUP BY u) q;
        IF p_limit IS NOT NULL THEN
            RETURN QUERY SELECT t.* FROM {s}.take(p_node, p_process, p_queues, p_limit, p_floors, p_now) t;
        END IF;
    END $$;

    -- The node is gone, and what it held is ready; what was revoked meanwhile has ended.
    CREATE FUNCTION {s}.give_back(p_node text, p_crashed boolean, p_now float8) RETURNS text[] LANGUAGE plpgsql AS $$
    DECLARE
        v_now float8 := coalesce(p_now, extract(epoch FROM clock_timestamp())::float8);
        v_row record;
        v_ids text[] := '{}';
        v_queues text[] := '{}';
    BEGIN
        DELETE FROM {s}.nodes n WHERE n.id = p_node;
        FOR v_row IN
            SELECT m.id, m.queue, m.revoked, m.end_status, m.end_record FROM {s}.messages m WHERE m.state = 2 AND m.node = p_node ORDER BY m.taken FOR UPDATE
        LOOP
            v_ids := v_ids || v_row.id;
            IF v_row.revoked THEN
                DELETE FROM {s}.messages m WHERE m.id = v_row.id;
                IF v_row.end_record IS NOT NULL THEN
                    PERFORM {s}.keep(ARRAY[v_row.id], ARRAY[v_row.end_status], ARRAY[true], ARRAY[v_row.end_record], v_now);
                END IF;
            ELSE
                UPDATE {s}.messages m SET state = 0, crashes = m.crashes + p_crashed::int, interruptions = m.interruptions + (NOT p_crashed)::int,
                    node = NULL, process = NULL, taken = NULL WHERE m.id = v_row.id;
                v_queues := v_queues || v_row.queue;
            END IF;
        END LOOP;
        PERFORM {s}.ring_key({s}.key('q' || q.queue), q.number::int) FROM (SELECT u AS queue, count(*) AS number FROM unnest(v_queues) u GROUP BY u) q;
        RETURN v_ids;
    END $$;

    CREATE FUNCTION {s}.outlook(p_queues text[], p_now float8) RETURNS TABLE (ready boolean, due_in float8) LANGUAGE plpgsql AS $$
    DECLARE
        v_now float8 := coalesce(p_now, extract(epoch FROM clock_timestamp())::float8);
        v_queue text;
        v_due float8;
    BEGIN
        ready := false;
        FOREACH v_queue IN ARRAY p_queues LOOP
            IF NOT EXISTS (SELECT FROM {s}.paused p WHERE p.queue = v_queue) THEN
                ready := ready OR EXISTS (SELECT FROM {s}.messages m WHERE m.state = 0 AND m.queue = v_queue);
                EXIT WHEN ready;
                SELECT m.due INTO v_due FROM {s}.messages m WHERE m.state = 1 AND m.queue = v_queue ORDER BY m.due LIMIT 1;
                due_in := least(due_in, v_due - v_now);
            END IF;
        END LOOP;
        RETURN NEXT;
    END $$;

    -- The one who listens begins, and ends, to wait for these names.
    CREATE FUNCTION {s}.attend(p_names text[]) RETURNS SETOF bigint LANGUAGE plpgsql AS $$
    DECLARE
        v_name text;
    BEGIN
        FOREACH v_name IN ARRAY p_names LOOP
            PERFORM pg_advisory_lock_shared({s}.key(v_name));
            RETURN NEXT {s}.key(v_name);
        END LOOP;
    END $$;

    CREATE FUNCTION {s}.results_version(p_ids text[]) RETURNS numeric LANGUAGE sql STABLE AS $$
        SELECT coalesce(sum(r.version), 0) FROM {s}.results r WHERE r.task_id = ANY (p_ids)
    $$;
"""

MIGRATIONS: tuple[tuple[str, ...], ...] = ((TABLES, FUNCTIONS),)
"""What leads from each version of the schema to the next. Each is one transaction, which only makes things, or changes what no running verb waits for; functions that
change get a new name, so that older programs go on meanwhile."""

PUBLISH = "SELECT {s}.publish($1, $2, $3, $4, $5, $6, $7, $8, $9)"
PUBLISH_IN = "SELECT {s}.publish(%s::text[], %s::text[], %s::smallint[], %s::float8[], %s::float8[], %s::bytea[], %s::float8, NULL, NULL)"
EXCHANGE_DONE = "SELECT * FROM {s}.exchange_done($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"
EXCHANGE_EACH = "SELECT * FROM {s}.exchange_each(" + ", ".join(f"${number}" for number in range(1, 30)) + ")"
OUTLOOK = "SELECT ready, due_in FROM {s}.outlook($1, $2)"
RESULTS_VERSION = "SELECT {s}.results_version($1)::text"
ATTEND = "SELECT {s}.attend($1)"
LEAVE = "SELECT count(pg_advisory_unlock_shared(k)) FROM unnest($1::bigint[]) k"
HELD = (
    "SELECT 1, m.id, m.queue, m.token, m.crashes, m.interruptions, m.at,"
    " m.revoked OR EXISTS (SELECT FROM {s}.revokes r WHERE r.id = m.id AND r.until > coalesce($2::float8, {s}.now())), coalesce($2::float8, {s}.now()), m.message, m.process"
    " FROM {s}.messages m WHERE m.state = 2 AND m.node = $1 ORDER BY m.taken"
)
STORE_FENCE = "SELECT 1 FROM {s}.messages m WHERE m.id = $1 AND m.node = $2 AND m.process = $3 AND m.token = $4 FOR SHARE"
KEEP = "SELECT {s}.keep($1, $2, $3, $4, coalesce($5, {s}.now()))"
PRUNE = "DELETE FROM {s}.results WHERE task_id IN (SELECT r.task_id FROM {s}.results r WHERE r.stored < $1::float8 ORDER BY r.stored LIMIT $2::int FOR UPDATE SKIP LOCKED)"
# The clock may have been set back: what claims to come from the future was stored now.
PRUNE_FUTURE = "UPDATE {s}.results SET stored = $1::float8 WHERE task_id IN (SELECT r.task_id FROM {s}.results r WHERE r.stored > $1::float8 + 60 LIMIT $2::int)"

_FIELDS = "{{id}}, {{queue}}, {state}, {due}, {{at}}, {{priority}}::int, {{n}}, {node}, {process}, {{crashes}}, {{interruptions}}, {reason}, {died}, {{message}}"
_COLUMNS = (
    "m.id, m.queue, {state}, {due}, m.at, m.priority, m.n, {node}, {process}, m.crashes, m.interruptions, {reason}, {died}, m.message"
)
WAITING = (
    _COLUMNS.format(state="m.state::int", due="m.due", node="m.node", process="m.process", reason="''::text", died="NULL::float8")
    + " FROM {s}.messages m"
)
DEAD = (
    _COLUMNS.format(state="3", due="NULL::float8", node="NULL::text", process="NULL::int", reason="m.reason", died="m.died")
    + " FROM {s}.dead m"
)
PEEK = {
    # The due ones that nobody promoted yet are few; so they alone are sorted, and the others come as the index has them.
    "ready": (
        f"SELECT * FROM ((SELECT {WAITING} WHERE m.state = 0 AND m.queue = $1 ORDER BY m.priority DESC, m.at, m.n LIMIT $3::int + $4::int)"
        f" UNION ALL (SELECT {WAITING} WHERE m.state = 1 AND m.queue = $1 AND m.due <= $2 ORDER BY m.priority DESC, m.at, m.n LIMIT $3::int + $4::int)) u"
        " ORDER BY u.priority DESC, u.at, u.n LIMIT $3::int OFFSET $4::int"
    ),
    "scheduled": f"SELECT {WAITING} WHERE m.state = 1 AND m.queue = $1 AND m.due > $2 ORDER BY m.due, m.n LIMIT $3::int OFFSET $4::int",
    "leased": f"SELECT {WAITING} WHERE m.state = 2 AND m.queue = $1 AND $2::float8 > 0 ORDER BY m.priority DESC, m.at, m.n LIMIT $3::int OFFSET $4::int",
    "dead": f"SELECT {DEAD} WHERE m.queue = $1 AND $2::float8 > 0 ORDER BY m.n DESC LIMIT $3::int OFFSET $4::int",
}
COUNTS = (
    "SELECT q.name, (SELECT count(*) FROM {s}.messages m WHERE m.state = 0 AND m.queue = q.name),"
    " (SELECT count(*) FROM {s}.messages m WHERE m.state = 1 AND m.queue = q.name AND m.due <= $2),"
    " (SELECT count(*) FROM {s}.messages m WHERE m.state = 1 AND m.queue = q.name AND m.due > $2),"
    " (SELECT count(*) FROM {s}.messages m WHERE m.state = 2 AND m.queue = q.name),"
    " (SELECT count(*) FROM {s}.dead d WHERE d.queue = q.name), (SELECT p.by FROM {s}.paused p WHERE p.queue = q.name)"
    " FROM unnest($1::text[]) WITH ORDINALITY q (name, place) ORDER BY q.place"
)
AHEAD = (
    "SELECT (SELECT count(*) FROM {s}.messages m WHERE m.state = 0 AND m.queue = $1 AND m.priority > $2)"
    " + (SELECT count(*) FROM {s}.messages m WHERE m.state = 0 AND m.queue = $1 AND m.priority = $2 AND (m.at, m.n) < ($3, $4))"
    " + (SELECT count(*) FROM {s}.messages m WHERE m.state = 1 AND m.queue = $1 AND m.due <= $5 AND (-m.priority, m.at, m.n) < (-$2::int, $3, $4))"
)
# Steps from name to name through the index instead of reading all its rows.
QUEUES = """
    WITH RECURSIVE
        ready (queue) AS (
            (SELECT queue FROM {s}.messages WHERE state = 0 ORDER BY queue LIMIT 1)
            UNION ALL SELECT (SELECT m.queue FROM {s}.messages m WHERE m.state = 0 AND m.queue > ready.queue ORDER BY m.queue LIMIT 1) FROM ready WHERE ready.queue IS NOT NULL
        ),
        scheduled (queue) AS (
            (SELECT queue FROM {s}.messages WHERE state = 1 ORDER BY queue LIMIT 1)
            UNION ALL SELECT (SELECT m.queue FROM {s}.messages m WHERE m.state = 1 AND m.queue > scheduled.queue ORDER BY m.queue LIMIT 1)
            FROM scheduled WHERE scheduled.queue IS NOT NULL
        )
    SELECT queue FROM ready WHERE queue IS NOT NULL
    UNION SELECT queue FROM scheduled WHERE queue IS NOT NULL
    UNION SELECT queue FROM {s}.messages WHERE state = 2
    UNION SELECT queue FROM {s}.dead
    UNION SELECT queue FROM {s}.paused
    ORDER BY 1
"""
REPLAY = """
    WITH back AS (
        INSERT INTO {s}.messages (id, queue, priority, state, at, token, message)
        SELECT d.id, d.queue, d.priority, 0, coalesce($2::float8, {s}.now()), d.token, d.message FROM {s}.dead d WHERE d.id = $1
        ON CONFLICT (id) DO NOTHING RETURNING id
    )
    DELETE FROM {s}.dead d USING back WHERE d.id = back.id RETURNING d.id, d.queue
"""

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_node = msgspec.json.Decoder(Node).decode


class PostgreSQLEngine:
    """The engine of `postgresql://user:password@host:port/database`; what libpq knows may follow (`?sslmode=verify-full&…`), several hosts too.

    Options, in the URL or in `broker_transport_options`: `schema`, `pool_size` (connections of one process beside the one that listens), `timeout_seconds` (of every
    verb but `publish`, which is told), `listen` and `prepare` (both false behind PgBouncer in transaction mode), `poll_seconds` (how often to look without `listen`).
    """

    capabilities = Capabilities(engine="postgresql")

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        result_expires: float | None = 86400,
        revokes_expire_seconds: float = 10800,
        **transport_options: Any,
    ) -> None:
        self.url = url
        base, in_url = _split(url)
        options = _options({**in_url, **transport_options})
        self._server = _Server(base)
        self._schema: str = options["schema"]
        self._pool_size: int = options["pool_size"]
        self._timeout_seconds: float = options["timeout_seconds"]
        self._listens: bool = options["listen"]
        self._prepares: bool = options["prepare"]
        self._poll_seconds: float = options["poll_seconds"]
        self._clock = clock
        self._server_clock = clock is SYSTEM_CLOCK
        self._result_expires = result_expires
        self._revokes_expire_seconds = revokes_expire_seconds
        self._sql: dict[str, str] = {}
        self._doubts: dict[str, float] = {}
        self._checked = False
        self._failures = 0
        self._probe_at = 0.0
        self._trouble = ""
        self._idle: deque[_Connection] = deque()
        self._used: set[_Connection] = set()
        self._boxes: dict[str, _Box] = {}
        self._floors = _Floors()
        self._listener = _Listener(self)
        _engines.add(self)

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
        rows = _Rows(messages)
        if not messages:
            return
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + seconds
        doubt = self._doubt(rows.ids) if self._doubts else None
        begin = time.monotonic()
        lock_ms = max(1, int(seconds * 900))
        parameters = (*rows.parameters(), self._now(), lock_ms, doubt)
        try:
            self._run(PUBLISH, parameters, deadline)
        except _Ambiguous:
            # It was sent, and no answer came. A repeat must not double what was done meanwhile.
            self._remember(rows.ids, begin)
            raise
        if doubt is not None:
            for id in rows.ids:
                self._doubts.pop(id, None)

    def publish_in(self, connection: Any, messages: Sequence[Message]) -> None:
        """Publishes in a transaction of the caller: the messages come with its commit, or never.

        `connection` is a DB-API connection to the same database, of psycopg, psycopg2 or Django (`django.db.connection`); the caller commits.
        Whoever waits for work is told at the commit. Raises what the connection's driver raises.
        """
        if not messages:
            return
        self._ensure_schema()
        rows = _Rows(messages)
        ids, queues = ([_clean(text) for text in texts] for texts in (rows.ids, rows.queues))
        cursor = connection.cursor()
        try:
            cursor.execute(
                PUBLISH_IN.replace("{s}", self._schema), [ids, queues, rows.priorities, rows.delays, rows.etas, rows.bodies, self._now()]
            )
        finally:
            cursor.close()

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder) -> list[Delivery]:
        return self.exchange((), queues, limit=limit, holder=holder)[1]

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        if not settlements:
            return []
        return self._exchange(settlements, (None, None, None, None, None), None)[0]

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        names = tuple(dict.fromkeys(queues))
        floors = self._floors.of(names)
        begin = time.monotonic()
        try:
            refused, deliveries = self._exchange(settlements, (holder.node, holder.process, _texts(names), limit, floors), holder)
        except _Refused as refusal:
            if refusal.code == "CLN01":
                raise NodeLost(holder.node) from None
            raise
        self._floors.learn(names, deliveries, None if floors is not None else time.monotonic() - begin)
        return refused, deliveries

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        if process is not None:
            self._run("SELECT pg_advisory_xact_lock({s}.key('h' || $1::int || ' ' || $2::text))", (process, node))
        result = self._run(HELD, (node, self._now()))
        holders: dict[int, Holder] = {}
        deliveries = []
        for row in range(result.ntuples):
            number = _int(result.get_value(row, 10) or b"")
            if process in (None, number):
                deliveries.append(_delivery(result, row, holders.setdefault(number, Holder(node, number))))
        return deliveries

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        encoded = [(revocation, _encode(revocation.record) if revocation.record is not None else None) for revocation in revocations]
        answers: dict[str, str] = {}
        if not revocations:
            return answers
        with self._transaction() as run:
            now = self._time(run)
            for revocation, body in encoded:
                answers[revocation.id] = self._revoke(run, revocation, body, now)
        return answers

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        self._run(
            "INSERT INTO {s}.nodes (id, until, node) VALUES ($1, coalesce($2::float8, {s}.now()) + $3::float8, $4)"
            " ON CONFLICT (id) DO UPDATE SET until = excluded.until, node = excluded.node",
            (node.id, self._monotonic(), lease_seconds, _encode(node)),
        )

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        sql = "UPDATE {s}.nodes SET until = coalesce($2::float8, {s}.now()) + $3::float8 WHERE id = $1 RETURNING 1"
        return self._run(sql, (node, self._monotonic(), lease_seconds)).ntuples == 1

    def unregister(self, node: str) -> None:
        self._floors.forget()
        self._run("SELECT {s}.give_back($1, false, $2)", (node, self._now()))

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        self._floors.forget()
        gone = self._rows(
            "SELECT n.id FROM {s}.nodes n WHERE n.until <= coalesce($1::float8, {s}.now())"
            " UNION SELECT DISTINCT m.node FROM {s}.messages m WHERE m.state = 2 AND NOT EXISTS (SELECT FROM {s}.nodes n WHERE n.id = m.node)",
            (self._monotonic(),),
        )
        if not nodes and not gone:
            return []
        ids: list[str] = []
        named = set(nodes)
        for node in dict.fromkeys([*nodes, *(id for (id,) in gone)]):
            # Looked at again: it may have been renewed meanwhile.
            sql = (
                "SELECT {s}.give_back($1, true, $2) WHERE $3::boolean"
                " OR NOT EXISTS (SELECT FROM {s}.nodes n WHERE n.id = $1 AND n.until > coalesce($4::float8, {s}.now()))"
            )
            for (found,) in self._rows(sql, (node, self._now(), node in named, self._monotonic())):
                ids += found
        return ids

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        # First the lock is taken, then the tables are looked at: what was published earlier is seen, who publishes later finds the lock. The looks that soon follow find
        # what was on its way in between.
        deadline = time.monotonic() + timeout_seconds
        names = _texts(dict.fromkeys(queues))
        if timeout_seconds <= 0 or not self._listens:
            return self._wait_looking(names, deadline)
        listener = self._listener
        with listener.attending([f"q{queue}" for queue in dict.fromkeys(queues)]) as place:
            pauses = iter(LOOKS_SECONDS)
            while True:
                ((ready, due_in),) = listener.rows(OUTLOOK, (names, self._now()))
                if ready or (due_in is not None and due_in <= 0):
                    return True
                pause = next(pauses, LOOKS_SECONDS[-1])
                look_at = time.monotonic() + (pause if due_in is None else min(pause, due_in))
                if place.rest(min(look_at, deadline)):
                    return True
                if time.monotonic() >= deadline:
                    return False

    def close(self) -> None:
        self._listener.close()
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            box.place.close()
        while self._idle:
            self._idle.pop().close()

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        if not records:
            return []
        # One statement takes each task once; of several records of one task the last that counts stays.
        batches: list[dict[str, Record]] = [{}]
        for record in records:
            if record.task_id in batches[-1]:
                batches.append({})
            batches[-1][record.task_id] = record
        prepared = [(list(batch), _records(list(batch.values()))) for batch in batches]
        refused: list[str] = []
        if lease is None and len(prepared) == 1:
            ids, parameters = prepared[0]
            ((kept,),) = self._rows(KEEP, (*parameters, self._now()))
            return _without(ids, kept)
        with self._transaction() as run:
            if lease is not None:
                run("SET LOCAL synchronous_commit = off")
            for ids, parameters in prepared:
                if lease is not None and not run(STORE_FENCE, ids[0], lease.holder.node, lease.holder.process, lease.token):
                    refused += ids
                    continue
                ((kept,),) = run(KEEP, *parameters, self._now())
                refused += _without(ids, kept)
        return refused

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        if len(ids) == 1:
            result = self._run("SELECT record FROM {s}.results WHERE task_id = $1", (ids[0],))
        else:
            result = self._run("SELECT record FROM {s}.results WHERE task_id = ANY ($1::text[])", (_texts(ids),))
        records = [_decode_record(result.get_value(row, 0) or b"") for row in range(result.ntuples)]
        return {record.task_id: record for record in records}

    def forget(self, ids: Sequence[str]) -> None:
        self._run("DELETE FROM {s}.results WHERE task_id = ANY ($1::text[])", (_texts(ids),))

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        return _Subscription(self, ids) if self._listens else _PollingSubscription(self, ids)

    def prune(self, limit: int = 1000) -> int:
        """Also sweeps out what else is out of date: memories of revocations, letters, tombs."""
        with self._transaction() as run:
            now = self._time(run)
            run("DELETE FROM {s}.revokes WHERE until <= $1", now)
            run("DELETE FROM {s}.tombs WHERE at < $1::float8 - $2::float8 OR at > $1::float8 + 60", now, TOMB_SECONDS)
            self._throw_away_old_letters(run)
            pruned = 0
            if self._result_expires is not None:
                run(PRUNE_FUTURE, now, limit)
                pruned = run.count(PRUNE, now - self._result_expires, limit)
            ((dead_rows,),) = run("SELECT pg_stat_get_dead_tuples('{s}.messages'::regclass)")
        if dead_rows > VACUUM_ROWS:
            with suppress(EngineUnavailable):  # not our table, or the server is busy with it: it will do so itself
                self._run("VACUUM (SKIP_LOCKED, TRUNCATE FALSE) {s}.messages", (), time.monotonic() + 60.0)
        return pruned

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        now = self._now()
        if now is None:
            ((now,),) = self._rows("SELECT {s}.now()")
        return float(now)

    def queues(self) -> list[str]:
        return [queue for (queue,) in self._rows(QUEUES)]

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        names = list(dict.fromkeys(self.queues() if queues is None else queues))
        rows = self._rows(COUNTS, (_texts(names), self.now()))
        return {
            name: Depth(ready=ready + due, scheduled=scheduled, leased=leased, dead=dead, paused_by=by)
            for name, ready, due, scheduled, leased, dead, by in rows
        }

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state not in PEEK:
            raise ValueError(f"There is no state {state!r} of a message; there are {', '.join(PEEK)}.")
        now = self.now()
        return [_waiting(row, now) for row in self._rows(PEEK[state], (queue, now, limit, offset))]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        if not ids:
            return {}
        now = self.now()
        found: dict[str, Waiting] = {}
        for row in self._rows(f"SELECT {DEAD} WHERE m.id = ANY ($1::text[])", (_texts(ids),)):
            found[row[0]] = _waiting(row, now)
        for row in self._rows(f"SELECT {WAITING} WHERE m.id = ANY ($1::text[])", (_texts(ids),)):
            waiting = _waiting(row, now)
            if waiting.state == "ready":
                ((ahead,),) = self._rows(AHEAD, (row[1], row[5], row[4], row[6], now))
                waiting = msgspec.structs.replace(waiting, ahead=ahead)
            found[row[0]] = waiting
        return found

    def revoked(self) -> list[str]:
        sql = (
            "SELECT r.id FROM {s}.revokes r WHERE r.until > coalesce($1::float8, {s}.now())"
            " AND NOT EXISTS (SELECT FROM {s}.messages m WHERE m.id = r.id AND m.state <> 2)"
            " UNION SELECT m.id FROM {s}.messages m WHERE m.revoked"
        )
        return [id for (id,) in self._rows(sql, (self._now(),))]

    def purge(self, queues: Sequence[str]) -> int:
        purged = 0
        for queue in dict.fromkeys(queues):
            for state in (READY, SCHEDULED):
                sql = (
                    "WITH gone AS (DELETE FROM {s}.messages WHERE id IN (SELECT m.id FROM {s}.messages m"
                    f" WHERE m.state = {state} AND m.queue = $1 LIMIT {PURGE_LIMIT} FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone"
                )
                while True:
                    ((removed,),) = self._rows(sql, (queue,))
                    purged += removed
                    if removed < PURGE_LIMIT:
                        break
        return purged

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        sql = "INSERT INTO {s}.paused (queue, by) SELECT q, $2 FROM unnest($1::text[]) q ON CONFLICT (queue) DO UPDATE SET by = excluded.by"
        self._run(sql, (_texts(dict.fromkeys(queues)), by))

    def resume(self, queues: Sequence[str]) -> None:
        self._floors.forget()
        with self._transaction() as run:
            run("DELETE FROM {s}.paused WHERE queue = ANY ($1::text[])", _texts(queues))
            self._ring(run, "q", queues)

    def replay(self, ids: Sequence[str]) -> list[str]:
        self._floors.forget()
        replayed: list[str] = []
        with self._transaction() as run:
            queues = []
            for id in dict.fromkeys(ids):
                for replayed_id, queue in run(REPLAY, id, self._now()):
                    replayed.append(replayed_id)
                    queues.append(queue)
            self._ring(run, "q", queues)
        return replayed

    def discard(self, ids: Sequence[str]) -> list[str]:
        gone = {id for (id,) in self._rows("DELETE FROM {s}.dead WHERE id = ANY ($1::text[]) RETURNING id", (_texts(ids),))}
        return [id for id in dict.fromkeys(ids) if id in gone]

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        sql = "SELECT node, until - coalesce($1::float8, {s}.now()) FROM {s}.nodes"
        return [
            msgspec.structs.replace(_decode_node(body), lease_left_seconds=left) for body, left in self._rows(sql, (self._monotonic(),))
        ]

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        body = _encode(letter)
        with self._transaction() as run:
            self._post(run, addresses, body)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        while True:
            box = self._box(address) if self._listens else None
            now = time.monotonic()
            if box is None or now >= box.look_at or box.place.rest(0.0):
                if box is not None:
                    box.look_at = now + LOOKS_SECONDS[-1]
                letters = self._take_letters(address)
                if letters:
                    return letters
            if now >= deadline:
                return []
            if box is None:
                time.sleep(max(0.0, min(self._poll_seconds, deadline - now)))
            elif box.place.rest(min(deadline, box.look_at)):
                box.look_at = 0.0

    # -- steps -----------------------------------------------------------------------------------------------------

    def _exchange(
        self, settlements: Sequence[Settlement], taker: tuple[Any, Any, Any, Any, Any], holder: Holder | None
    ) -> tuple[list[str], list[Delivery]]:
        plain = _plain(settlements)
        if plain is not None:
            result = self._run(EXCHANGE_DONE, (*plain, *taker, self._now()))
        else:
            self._floors.forget()
            result = self._run(EXCHANGE_EACH, (*self._each(settlements), *taker, self._now()))
        refused: list[str] = []
        deliveries: list[Delivery] = []
        for row in range(result.ntuples):
            if result.get_value(row, 0) == b"\0\0\0\1":
                assert holder is not None
                deliveries.append(_delivery(result, row, holder))
            else:
                refused.append(_text(result.get_value(row, 1) or b""))
        return refused, deliveries

    def _each(self, settlements: Sequence[Settlement]) -> tuple[Any, ...]:
        """The arrays of EXCHANGE_EACH: all is encoded before anything is sent."""
        leases = [settlement.lease for settlement in settlements]
        messages = [self._replacement(settlement) for settlement in settlements]
        new = _Rows([message for message in messages if message is not None])
        places = iter(range(len(new.ids)))
        place = [next(places) if message is not None else None for message in messages]

        def spread(values: list[Any]) -> list[Any]:
            return [values[where] if where is not None else None for where in place]

        records = [settlement.record for settlement in settlements]
        owners = [owner for owner, settlement in enumerate(settlements, 1) for _ in settlement.follow_ups]
        follow_ups = _Rows([follow_up for settlement in settlements for follow_up in settlement.follow_ups])
        return (
            _texts([settlement.id for settlement in settlements]),
            _texts([lease.holder.node if lease else None for lease in leases]),
            _ints([lease.holder.process if lease else None for lease in leases]),
            _ints([lease.token if lease else None for lease in leases]),
            _smalls([_VERDICTS[settlement.verdict] for settlement in settlements]),
            _floats([settlement.delay_seconds for settlement in settlements]),
            _texts([settlement.reason for settlement in settlements]),
            _texts([record.task_id if record else None for record in records]),
            _texts([record.status if record else None for record in records]),
            _booleans([record.status in READY_STATES if record else None for record in records]),
            _bodies([_encode(record) if record else None for record in records]),
            _texts(spread(new.queues)),
            _smalls(spread(new.priorities)),
            _floats(spread(new.delays)),
            _floats(spread(new.etas)),
            _bodies(spread(new.bodies)),
            _ints(owners),
            *follow_ups.parameters(),
        )

    def _replacement(self, settlement: Settlement) -> Message | None:
        if settlement.message is None and settlement.verdict is Verdict.RETRY and settlement.lease is not None:
            for (body,) in self._rows("SELECT message FROM {s}.messages WHERE id = $1", (settlement.id,)):
                return _decode_message(body)
        return settlement.message

    def _revoke(self, run: _Transaction, revocation: Revocation, body: bytes | None, now: float) -> str:
        id, record = revocation.id, revocation.record
        kept = (
            (_texts([record.task_id]), _texts([record.status]), _booleans([record.status in READY_STATES]), _bodies([body]), now)
            if record
            else None
        )
        rows = run("SELECT state::int, node FROM {s}.messages WHERE id = $1 FOR UPDATE", id)
        if rows and rows[0][0] != LEASED:
            run("DELETE FROM {s}.messages WHERE id = $1", id)
            if kept is not None:
                run(KEEP, *kept)
            return "waiting"
        sql = "INSERT INTO {s}.revokes (id, until) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET until = excluded.until"
        run(sql, id, now + self._revokes_expire_seconds)
        if not rows:
            return "unknown"
        run(
            "UPDATE {s}.messages SET revoked = true, end_status = $2, end_record = $3 WHERE id = $1",
            id,
            record.status if record else None,
            body,
        )
        if revocation.terminate:
            letter = Letter(method="terminate", arguments={"task_id": id, "signal": revocation.signal})
            self._post(run, [rows[0][1]], _encode(letter))
        return "running"

    def _post(self, run: _Transaction, addresses: Sequence[str], body: bytes) -> None:
        self._throw_away_old_letters(run)
        sql = "INSERT INTO {s}.letters (at, address, letter) SELECT coalesce($1::float8, {s}.now()), a, $3 FROM unnest($2::text[]) a"
        run(sql, self._monotonic(), _texts(addresses), body)
        self._ring(run, "b", addresses)

    def _take_letters(self, address: str) -> list[Letter]:
        rows = self._rows(
            "DELETE FROM {s}.letters WHERE address = $1 AND at >= coalesce($2::float8, {s}.now()) - $3::float8 RETURNING n, letter",
            (address, self._monotonic(), LETTER_SECONDS),
        )
        return [_decode_letter(body) for _, body in sorted(rows)]

    def _throw_away_old_letters(self, run: _Transaction) -> None:
        """Also those that claim to be of a time to come."""
        sql = (
            "DELETE FROM {s}.letters WHERE n IN (SELECT l.n FROM {s}.letters l"
            " WHERE l.at < coalesce($1::float8, {s}.now()) - $2::float8 OR l.at > coalesce($1::float8, {s}.now()) + $2::float8 FOR UPDATE SKIP LOCKED)"
        )
        run(sql, self._monotonic(), LETTER_SECONDS)

    def _ring(self, run: _Transaction, kind: str, names: Sequence[str]) -> None:
        if names:
            run("SELECT {s}.ring_key({s}.key($1 || n), 1000) FROM unnest($2::text[]) n", kind, _texts(dict.fromkeys(names)))

    def _wait_looking(self, names: _Array, deadline: float) -> bool:
        while True:
            ((ready, due_in),) = self._rows(OUTLOOK, (names, self._now()))
            if ready or (due_in is not None and due_in <= 0):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, self._poll_seconds, due_in if due_in is not None else math.inf))

    def _box(self, address: str) -> _Box:
        now = time.monotonic()
        box = self._boxes.get(address)
        if box is not None and box.place.is_lost():
            self._boxes.pop(address, None)
            box.place.close()
            box = None
        if box is None:
            for other, unused in list(self._boxes.items()):
                if unused.used_at < now - 2 * LETTER_SECONDS and self._boxes.pop(other, None) is not None:
                    unused.place.close()
            place = self._listener.attending([f"b{address}"])
            place.__enter__()
            box = self._boxes.setdefault(address, _Box(place))
            if box.place is not place:
                place.close()
        box.used_at = now
        return box

    # -- time --------------------------------------------------------------------------------------------------------

    def _now(self) -> float | None:
        """None: the server's."""
        return None if self._server_clock else self._clock.time()

    def _monotonic(self) -> float | None:
        return None if self._server_clock else self._clock.monotonic()

    def _time(self, run: _Transaction) -> float:
        now = self._now()
        if now is None:
            ((now,),) = run("SELECT {s}.now()")
        return float(now)

    # -- doubt -------------------------------------------------------------------------------------------------------

    def _remember(self, ids: Sequence[str], begin: float) -> None:
        horizon = time.monotonic() - DOUBT_SECONDS
        for id, since in list(self._doubts.items()):
            if since < horizon:
                self._doubts.pop(id, None)
        for id in ids:
            self._doubts.setdefault(id, begin)

    def _doubt(self, ids: Sequence[str]) -> float | None:
        """For how many seconds one of them may have been there already. None: for none of them can that be."""
        oldest = min((self._doubts[id] for id in ids if id in self._doubts), default=None)
        return None if oldest is None else time.monotonic() - oldest + 5.0

    # -- the connections -----------------------------------------------------------------------------------------------

    def _statement(self, sql: str) -> str:
        """With the name of our schema in it."""
        try:
            return self._sql[sql]
        except KeyError:
            return self._sql.setdefault(sql, sql.replace("{s}", self._schema))

    def _rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return _rows(self._run(sql, parameters))

    def _run(self, sql: str, parameters: Sequence[Any], deadline: float | None = None) -> pq.abc.PGresult:
        """One statement, which is one transaction and one trip."""
        if deadline is None:
            deadline = time.monotonic() + self._timeout_seconds
        tries = 3
        while True:
            connection = self._acquire(deadline)
            try:
                result = connection.run(self._statement(sql), parameters, deadline)
            except BaseException as error:
                self._release(connection)
                tries -= 1
                if tries and isinstance(error, _Refused) and error.code in ("40P01", "40001"):
                    continue
                self._judge(error)
                raise
            self._failures = 0  # an answer counts; a connection alone, to a proxy whose server is gone, does not
            self._release(connection)
            return result

    @contextmanager
    def _transaction(self) -> Iterator[_Transaction]:
        """Commits at the end of the block, or changes nothing."""
        deadline = time.monotonic() + self._timeout_seconds
        connection = self._acquire(deadline)
        try:
            connection.run("BEGIN", (), deadline)
            yield _Transaction(self, connection, deadline)
            connection.run("COMMIT", (), deadline)
            self._failures = 0
        except BaseException as error:
            connection.roll_back(deadline)
            self._judge(error)
            raise
        finally:
            self._release(connection)

    def _acquire(self, deadline: float) -> _Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            self._used.add(connection)
            if connection.is_alive():
                return connection
            self._release(connection)
        while len(self._used) >= self._pool_size:
            if time.monotonic() >= deadline:
                raise EngineUnavailable(
                    f"All {self._pool_size} connections of this process to {self._server} are in use. Raise the option pool_size, or call from fewer threads."
                )
            time.sleep(0.001)
            with suppress(IndexError):
                connection = self._idle.pop()
                self._used.add(connection)
                return connection
        connection = self._connect(deadline)
        self._used.add(connection)
        return connection

    def _release(self, connection: _Connection) -> None:
        if connection.is_usable() and connection in self._used:
            self._used.discard(connection)
            self._idle.append(connection)
        else:
            self._used.discard(connection)
            connection.close()

    def _connect(self, deadline: float) -> _Connection:
        now = time.monotonic()
        if self._failures >= FAILURES_BEFORE_REST:
            if now < self._probe_at:
                raise EngineUnavailable(
                    f"{self._trouble} (Not tried again now: the last {self._failures} tries failed, the next is in {self._probe_at - now:.1f} s.)"
                )
            self._probe_at = now + max(PROBE_SECONDS, deadline - now)
        try:
            connection = self._server.connect(deadline, prepares=self._prepares)
        except EngineUnavailable as trouble:
            self._failed(str(trouble))
            raise
        try:
            if not self._checked:
                self._migrate(connection, deadline)
                self._checked = True
        except BaseException as error:
            connection.close()
            self._judge(error)
            raise
        return connection

    def _failed(self, trouble: str) -> None:
        self._failures += 1
        self._trouble = trouble
        self._probe_at = time.monotonic() + PROBE_SECONDS

    def _judge(self, error: BaseException) -> None:
        """Draws the conclusions from an error that a verb met."""
        if isinstance(error, _Ambiguous) and error.silent:
            self._failed(str(error))
        elif isinstance(error, _Refused):
            if error.code in ("42P01", "42883", "3F000"):
                self._checked = False  # somebody dropped the schema; the next connection makes it anew
                while self._idle:
                    self._idle.pop().close()
            elif error.code.startswith("54"):
                raise EncodeError(f"PostgreSQL cannot index an id or a queue name of that length: {error.detail}.", "id") from error

    def _ensure_schema(self) -> None:
        if not self._checked:
            self._release(self._acquire(time.monotonic() + self._timeout_seconds))

    def _version(self, connection: _Connection, deadline: float) -> int:
        # Not by to_regclass: that may remember what was so before we waited for our turn.
        exists = f"SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = '{self._schema}' AND tablename = 'version')"
        if not _rows(connection.run(exists, (), deadline))[0][0]:
            return -1
        ((version,),) = _rows(connection.run(f"SELECT version FROM {self._schema}.version", (), deadline))
        if version > len(MIGRATIONS):
            raise EngineCorrupt(
                f"The schema {self._schema} of {self._server} was made by a newer Celeriac (it is version {version}, this one knows {len(MIGRATIONS)})."
                " Upgrade Celeriac here too, or choose another schema."
            )
        return int(version)

    def _migrate(self, connection: _Connection, deadline: float) -> None:
        """Waits for nobody when there is nothing to change."""
        if self._version(connection, deadline) == len(MIGRATIONS):
            return
        deadline = max(deadline, time.monotonic() + self._timeout_seconds)
        try:
            connection.run("BEGIN", (), deadline)
            connection.run("SET LOCAL lock_timeout = '5s'", (), deadline)
            connection.run("SET LOCAL client_min_messages = warning", (), deadline)
            connection.run(f"SELECT pg_advisory_xact_lock({_seed(self._schema)})", (), deadline)
            version = self._version(connection, deadline)  # somebody else may have done it while we waited for our turn
            if version < 0:
                exists = _rows(
                    connection.run(f"SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = '{self._schema}')", (), deadline)
                )[0][0]
                if not exists:
                    connection.run(f"CREATE SCHEMA {self._schema}", (), deadline)
                version = 0
            for step in MIGRATIONS[version:]:
                for script in step:
                    connection.script(script.replace("{s}", self._schema).replace("{seed}", str(_seed(self._schema))), deadline)
            connection.run(f"UPDATE {self._schema}.version SET version = {len(MIGRATIONS)}", (), deadline)
            connection.run("COMMIT", (), deadline)
        except _Refused as refusal:
            connection.roll_back(deadline)
            if refusal.code == "42501":
                raise EngineUnavailable(
                    f"The user of {self._server} may not make the schema {self._schema} ({refusal.detail})."
                    f" Let an administrator run: CREATE SCHEMA {self._schema} AUTHORIZATION <that user>; or choose another with the option schema."
                ) from refusal
            raise

    def _after_fork_in_child(self) -> None:
        for connection in [*self._idle, *self._used]:
            connection.abandon()
        self._idle = deque()
        self._used = set()
        boxes, self._boxes = self._boxes, {}
        for box in boxes.values():
            box.place.abandon()
        self._listener.abandon()
        self._listener = _Listener(self)


class _Refused(EngineUnavailable):
    """The server answered with an error; nothing was changed. `code` is its SQLSTATE, `detail` its own words."""

    def __init__(self, message: str, code: str, detail: str) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


class _Ambiguous(EngineUnavailable):
    """It was sent, and the answer did not come: nobody can tell whether it was done. `silent`: the connection stood, and nothing came."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


# -- one connection ------------------------------------------------------------------------------------------------


class _Connection:
    """A connection of libpq, that waits for the server no longer than it is told."""

    def __init__(self, server: _Server, pgconn: pq.abc.PGconn, *, prepares: bool) -> None:
        self._server = server
        self._pgconn = pgconn
        self._prepares = prepares
        self._statements: dict[str, bytes] = {}
        self._owed = False
        self._broken = False
        self.socket = pgconn.socket

    def run(self, sql: str, parameters: Sequence[Any], deadline: float) -> pq.abc.PGresult:
        """One statement. When this raises anything but _Refused, the connection is of no use any more."""
        pgconn = self._pgconn
        values: list[bytes | None] = []
        formats: list[int] = []
        for parameter in parameters:
            kind = type(parameter)
            if kind is _Array or kind is bytes:
                values.append(parameter)
                formats.append(1)
            else:
                values.append(None if parameter is None else _parameter(parameter))
                formats.append(0)
        try:
            if self._owed:
                self._receive(deadline)
            if not self._prepares:
                pgconn.send_query_params(sql.encode(), values, param_formats=formats, result_format=1)
            else:
                name = self._statements.get(sql)
                if name is None:
                    name = b"celeriac_%d" % len(self._statements)
                    pgconn.send_prepare(name, sql.encode())
                    self._checked(self._receive(deadline))
                    self._statements[sql] = name
                pgconn.send_query_prepared(name, values, param_formats=formats, result_format=1)
            return self._checked(self._receive(deadline))
        except _Refused:
            raise
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error

    def script(self, sql: str, deadline: float) -> None:
        """Several statements without parameters."""
        try:
            self._pgconn.send_query(sql.encode())
            self._checked(self._receive(deadline))
        except _Refused:
            raise
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error

    def send(self, sql: str, parameters: Sequence[Any]) -> None:
        """A statement whose answer nobody waits for: it is read before the next one, or with the next notification."""
        try:
            if self._owed:
                self._receive(time.monotonic() + 1.0)
            self._pgconn.send_query_params(sql.encode(), list(parameters), param_formats=[1] * len(parameters), result_format=1)
            self._pgconn.flush()
            self._owed = True
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error

    def notifications(self) -> list[str]:
        """What has been told meanwhile. Does not wait."""
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            while self._owed and not pgconn.is_busy():
                self._owed = pgconn.get_result() is not None
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error
        found = []
        while (told := pgconn.notifies()) is not None:
            found.append(told.extra.decode())
        return found

    def roll_back(self, deadline: float) -> None:
        if self.is_usable():
            return
        if not self._broken:
            with suppress(EngineUnavailable):
                self.run("ROLLBACK", (), deadline)

    def is_usable(self) -> bool:
        """Nothing is amiss, and no transaction is open."""
        return not self._broken and self._pgconn.status == 0 and self._pgconn.transaction_status == 0

    def is_alive(self) -> bool:
        """As far as can be told without asking the server: a connection that it closed is readable."""
        if _readable((self.socket,), 0.0):
            try:
                self.notifications()
                return not _readable((self.socket,), 0.0)
            except EngineUnavailable:
                return False
        return True

    def close(self) -> None:
        self._broken = True
        self._pgconn.finish()

    def abandon(self) -> None:
        """In a child: the session is the parent's. (A PGconn of another process does not say good-bye when it is forgotten.)"""
        self._broken = True
        with suppress(OSError):
            os.close(self.socket)

    def _receive(self, deadline: float) -> pq.abc.PGresult | None:
        """The last result of what was sent."""
        pgconn = self._pgconn
        while pgconn.flush():
            _wait(self.socket, deadline, write=True)
            if _readable((self.socket,), 0.0):
                pgconn.consume_input()
        last = None
        while True:
            while pgconn.is_busy():
                _wait(self.socket, deadline)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                self._owed = False
                return last
            if last is None or last.status in _GOOD:
                last = result

    def _checked(self, result: pq.abc.PGresult | None) -> pq.abc.PGresult:
        if result is None:
            raise OSError("the connection is closed")
        if result.status in _GOOD:
            return result
        code = (result.error_field(67) or b"").decode()
        detail = (result.error_field(77) or result.error_message or b"").decode(errors="replace").strip()
        if self._pgconn.status != 0 or code.startswith("57P"):
            self._broken = True
        if not code:
            raise OSError(detail)
        raise _Refused(self._server.refusal(code, detail), code, detail)

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, _Late):
            return _Ambiguous(
                f"{self._server} has not answered in time. Is it overloaded, is the disk full or slow, or does somebody hold a lock"
                " (pg_stat_activity shows who)? Or has the network lost it?",
                silent=True,
            )
        if isinstance(error, (EngineUnavailable, ImproperlyConfigured)) or not isinstance(error, Exception):
            return error
        detail = str(error).strip() or type(error).__name__
        return _Ambiguous(
            f"The connection to {self._server} was lost ({detail}). Has the server been restarted, or a firewall cut in? The next call connects anew.",
            silent=False,
        )


class _Late(Exception):
    """The deadline has passed."""


_GOOD = (1, 2)
"""COMMAND_OK, TUPLES_OK."""


class _Transaction:
    """What `with engine._transaction() as run` gives: `run(sql, …)` returns rows."""

    __slots__ = ("_connection", "_deadline", "_engine")

    def __init__(self, engine: PostgreSQLEngine, connection: _Connection, deadline: float) -> None:
        self._engine = engine
        self._connection = connection
        self._deadline = deadline

    def __call__(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return _rows(self._connection.run(self._engine._statement(sql), parameters, self._deadline))

    def count(self, sql: str, *parameters: Any) -> int:
        return self._connection.run(self._engine._statement(sql), parameters, self._deadline).command_tuples or 0


class _Server:
    """Where the database is, and how to get there."""

    def __init__(self, url: str) -> None:
        try:
            from psycopg import pq
        except ImportError as error:
            raise ImproperlyConfigured(
                f"The PostgreSQL engine needs psycopg ({error}). Install it: pip install 'celeriac[postgresql]'."
            ) from None
        self._pq = pq
        try:
            parsed = pq.Conninfo.parse(url.encode())
        except Exception as error:
            raise ImproperlyConfigured(f"The URL of the PostgreSQL engine is wrong: {str(error).strip()}.") from None
        given = {option.keyword.decode(): option.val.decode() for option in parsed if option.val is not None}
        defaults = {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val is not None}
        self._hosts = (given.get("host") or defaults.get("host") or "").split(",")
        self._addresses = given.get("hostaddr", "").split(",") if given.get("hostaddr") else []
        self._ports = (given.get("port") or defaults.get("port") or "5432").split(",")
        for name in ("host", "hostaddr", "port", "connect_timeout"):
            given.pop(name, None)
        usual = {
            "application_name": "celeriac",
            "client_encoding": "UTF8",
            "target_session_attrs": "read-write",
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
        }
        self._options = {**usual, **given}
        self._name = f"{given.get('user', '')}@{','.join(self._hosts)}:{','.join(self._ports)}/{given.get('dbname', '')}".removeprefix("@")

    def __str__(self) -> str:
        return f"the PostgreSQL server {self._name}"

    def connect(self, deadline: float, *, prepares: bool) -> _Connection:
        """To the first that lets us in and can be written, within the deadline."""
        targets = self._targets(deadline)
        trouble = ""
        for number, target in enumerate(targets):
            now = time.monotonic()
            try:
                pgconn = self._open(target, now + (deadline - now) / (len(targets) - number))
            except _Late:
                trouble = trouble or "no answer in time"
            except OSError as error:
                trouble = str(error)
            else:
                pgconn.nonblocking = 1
                return _Connection(self, pgconn, prepares=prepares)
        raise EngineUnavailable(self._unreachable(trouble))

    def _targets(self, deadline: float) -> list[dict[str, str]]:
        targets: list[dict[str, str]] = []
        error = ""
        for number, host in enumerate(self._hosts):
            port = self._ports[number] if number < len(self._ports) else self._ports[0]
            if number < len(self._addresses):
                targets.append({"host": host, "hostaddr": self._addresses[number], "port": port})
            elif not host or host.startswith(("/", "@")):
                targets.append({"host": host, "port": port} if host else {"port": port})
            else:
                try:
                    targets += [{"host": host, "hostaddr": address, "port": port} for address in _resolve(host, deadline)]
                except OSError as trouble:
                    error = str(trouble)
        if not targets:
            raise EngineUnavailable(
                f"The host name of {self} cannot be resolved ({error}). Is it spelled right, and does the name server answer?"
            )
        return targets

    def _open(self, target: dict[str, str], deadline: float) -> pq.abc.PGconn:
        words = {**self._options, **target}
        conninfo = " ".join(f"{name}='{_quoted(value)}'" for name, value in words.items())
        pgconn = self._pq.PGconn.connect_start(conninfo.encode())
        try:
            polling = 2
            while polling != 3:
                if pgconn.status == 1 or polling == 0:
                    raise OSError((pgconn.error_message or b"").decode(errors="replace").strip())
                _wait(pgconn.socket, deadline, write=polling == 2)
                polling = pgconn.connect_poll()
        except BaseException:
            pgconn.finish()
            raise
        return pgconn

    def _unreachable(self, detail: str) -> str:
        """What kept us out, in words that say what to do. libpq tells it in words only."""
        low = detail.lower()
        if "no answer in time" in low:
            advice = "Does it run, and does no firewall swallow the packets?"
        elif "password" in low or "authentication" in low or "pg_hba" in low or ("role" in low and "does not exist" in low):
            advice = "Check user and password in the URL, and the server's pg_hba.conf."
        elif "ssl" in low or "certificate" in low or "tls" in low:
            advice = "Check sslmode, sslrootcert and the like in the URL, and the server's certificate."
        elif "database" in low and "does not exist" in low:
            advice = "Create it (createdb), or change the name in the URL."
        elif "too many" in low or "connection slots" in low or "connection limit" in low:
            advice = "Raise max_connections there, lower the option pool_size here, or put PgBouncer between."
        elif "starting up" in low or "shutting down" in low or "recovery" in low:
            advice = "It is starting or stopping; it will be back."
        elif "read-only" in low or "not accept" in low:
            advice = "It is a replica, or set read-only: name the primary in the URL, or all hosts, separated by commas."
        else:
            advice = "Does it run there, and can it be reached from here?"
        return f"Cannot connect to {self} ({detail}). {advice}"

    def refusal(self, code: str, detail: str) -> str:
        """An error that the server answered with, and what to do."""
        match code:
            case "25006":
                advice = "It has become a replica, or was set read-only. Name the primary in the URL, or all hosts, separated by commas."
            case "53100":
                advice = "The server's disk is full. Make room there; nothing was changed."
            case "53200":
                advice = "The server is out of memory; nothing was changed."
            case "53300" | "53400":
                advice = "Raise the server's limits, or lower the option pool_size here."
            case "57014":
                advice = "A statement_timeout is set for this user or database, and it has passed; nothing was changed. Raise it, or look for what is slow."
            case "55P03":
                advice = "Somebody holds a lock for long (pg_stat_activity shows who); nothing was changed. Try again later."
            case "57P01" | "57P02" | "57P03":
                advice = "The server is being stopped or restarted, or somebody ended this connection. Try again."
            case "42501":
                advice = "This user lacks a permission: grant it all on the schema and what is in it."
            case "42P01" | "42883" | "3F000":
                advice = "Somebody removed what Celeriac keeps there. It is made anew with the next call; what it held is gone."
            case _:
                advice = f"Nothing was changed (SQLSTATE {code})."
        return f"The PostgreSQL server {self._name} refused an operation: {detail}. {advice}"


# -- the one that listens ------------------------------------------------------------------------------------------


class _Listener:
    """One connection of each process, on which all who wait are told. No thread belongs to it: each who waits watches its socket, and whoever finds something there
    hands it to those whom it concerns, each of whom has a pipe."""

    def __init__(self, engine: PostgreSQLEngine) -> None:
        self._engine = engine
        self._lock = threading.RLock()
        self._connection: _Connection | None = None
        self._places: dict[int, list[_Place]] = {}
        self.generation = 0
        self._process = os.getpid()

    def attending(self, names: Sequence[str]) -> _Place:
        """`with` it, one waits for these names."""
        return _Place(self, names)

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                connection = self._connected()
                found = _rows(connection.run(self._engine._statement(sql), parameters, time.monotonic() + self._engine._timeout_seconds))
            except BaseException:
                self._lose()
                raise
            self._hand_out()
            return found

    def join(self, place: _Place, names: Sequence[str]) -> list[int]:
        with self._lock:
            keys = [key for (key,) in self.rows(ATTEND, (_texts(names),))]
            for key in keys:
                self._places.setdefault(key, []).append(place)
            place.generation = self.generation
            place.socket = self._connection.socket if self._connection is not None else -1
            return keys

    def leave(self, place: _Place) -> None:
        with self._lock:
            for key in place.keys:
                places = self._places.get(key)
                if places is not None:
                    with suppress(ValueError):
                        places.remove(place)
                    if not places:
                        del self._places[key]
            if self._connection is not None and place.generation == self.generation and place.keys:
                try:
                    self._connection.send(LEAVE, (_longs(place.keys),))
                except EngineUnavailable:
                    self._lose()

    def read(self) -> None:
        """Takes what has come, and hands it out."""
        with self._lock:
            self._hand_out()

    def close(self) -> None:
        with self._lock:
            self._lose()

    def abandon(self) -> None:
        if self._connection is not None:
            self._connection.abandon()

    def _connected(self) -> _Connection:
        if self._connection is None:
            engine = self._engine
            deadline = time.monotonic() + engine._timeout_seconds
            connection = engine._connect(deadline)
            try:
                ((pid,),) = _rows(connection.run("SELECT pg_backend_pid()", (), deadline))
                connection.run(f"LISTEN celeriac_{pid}", (), deadline)
                connection.run("LISTEN celeriac_all", (), deadline)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _hand_out(self) -> None:
        if self._connection is None:
            return
        try:
            told = self._connection.notifications()
        except EngineUnavailable:
            self._lose()
            return
        for text in told:
            key, _, count = text.partition(" ")
            places = self._places.get(int(key), [])
            for place in places[: int(count)]:
                # The next token is for somebody else, as long as there is somebody else.
                places.remove(place)
                places.append(place)
                place.ring()

    def _lose(self) -> None:
        """The connection is gone. All who waited look for themselves, and begin anew."""
        connection, self._connection = self._connection, None
        self.generation += 1
        places, self._places = self._places, {}
        for listed in places.values():
            for place in listed:
                place.ring()
        if connection is not None:
            connection.close()


class _Place:
    """Of one who waits, at the listener."""

    def __init__(self, listener: _Listener, names: Sequence[str]) -> None:
        self._listener = listener
        self._names = names
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        self.keys: list[int] = []
        self.generation = -1
        self.socket = -1

    def __enter__(self) -> _Place:
        try:
            self.keys = self._listener.join(self, self._names)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join_again(self) -> None:
        self.keys = self._listener.join(self, self._names)

    def is_lost(self) -> bool:
        return self.generation != self._listener.generation

    @property
    def pipe(self) -> int:
        return self._reader

    def ring(self) -> None:
        with suppress(OSError):
            os.write(self._writer, b"!")

    def rest(self, until: float) -> bool:
        """Waits until it is rung for. True: it was, or the connection is gone, so that one has to look."""
        while True:
            if self._taken():
                return True
            if self.is_lost():
                return True
            left = until - time.monotonic()
            ready = _readable((self.socket, self._reader), max(0.0, left))
            if self.socket in ready:
                self._listener.read()
                continue
            if not ready and left <= 0:
                return False

    def close(self) -> None:
        reader, self._reader = self._reader, -1
        if reader < 0:
            return
        if self._listener._process == os.getpid():
            self._listener.leave(self)
        os.close(reader)
        os.close(self._writer)

    def abandon(self) -> None:
        self.keys = []
        self.close()

    def _taken(self) -> bool:
        try:
            return bool(os.read(self._reader, 4096))
        except OSError:
            return False


class _Box:
    """Of one address at which we collect."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        self.look_at = 0.0
        self.used_at = 0.0


class _Subscription:
    """A place at the listener, and what the results looked like when it began."""

    def __init__(self, engine: PostgreSQLEngine, ids: Sequence[str]) -> None:
        self._engine = engine
        self._listener = engine._listener
        self._ids = _texts(ids)
        names = ["r", *(f"r{id}" for id in dict.fromkeys(ids))] if len(ids) <= WIDE_SUBSCRIPTION else ["r", "r*"]
        self._place: _Place | None = self._listener.attending(names)
        self._place.__enter__()
        self._watch: Any = None
        self._begin()

    def _begin(self) -> None:
        try:
            self._version = self._listener.rows(RESULTS_VERSION, (self._ids,))
        except BaseException:
            self.close()
            raise
        self._pauses = iter(LOOKS_SECONDS)
        self._look_at = time.monotonic() + next(self._pauses)

    def fileno(self) -> int:
        """Of a set of descriptors: the pipe of our place, and the socket of the connection that listens, lest nobody else reads it."""
        assert self._place is not None, "the subscription is closed"
        if self._watch is None:
            # Either can itself be waited for; which there is depends on the system.
            self._watch = select.epoll() if hasattr(select, "epoll") else vars(select)["kqueue"]()
            self._add(self._place.pipe)
            self._add(self._place.socket)
        return int(self._watch.fileno())

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        place = self._place
        if place is None:
            return False
        while True:
            if place.is_lost():
                place._taken()
                place.join_again()
                if self._watch is not None:
                    self._add(place.socket)
                self._begin()
                return True
            if place.rest(min(deadline, self._look_at)):
                if place.is_lost():
                    continue
                return True
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + next(self._pauses, LOOKS_SECONDS[-1])
                before, self._version = self._version, self._listener.rows(RESULTS_VERSION, (self._ids,))
                if self._version != before:
                    return True
            if now >= deadline:
                return False

    def close(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.close()
        if getattr(self, "_watch", None) is not None:
            self._watch.close()
            self._watch = None

    def __del__(self) -> None:
        if getattr(self, "_place", None) is not None:
            self.close()

    def _add(self, descriptor: int) -> None:
        with suppress(OSError):
            if hasattr(select, "epoll"):
                self._watch.register(descriptor, select.EPOLLIN)
            else:
                bsd = vars(select)
                self._watch.control([bsd["kevent"](descriptor, bsd["KQ_FILTER_READ"], bsd["KQ_EV_ADD"])], 0)


class _PollingSubscription:
    """Where nobody listens: looks, again and again."""

    def __init__(self, engine: PostgreSQLEngine, ids: Sequence[str]) -> None:
        self._engine = engine
        self._ids = _texts(ids)
        self._version = self._look()
        self._pipe: tuple[int, int] | None = None

    def fileno(self) -> int:
        # Always readable: its owner asks `changed` in a loop, which is all that can be done here.
        if self._pipe is None:
            self._pipe = os.pipe()
            os.write(self._pipe[1], b"!")
        return self._pipe[0]

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while True:
            before, self._version = self._version, self._look()
            if self._version != before:
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, self._engine._poll_seconds))

    def close(self) -> None:
        pipe, self._pipe = self._pipe, None
        for descriptor in pipe or ():
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_pipe", None) is not None:
            self.close()

    def _look(self) -> list[tuple[Any, ...]]:
        return self._engine._rows(RESULTS_VERSION, (self._ids,))


# -- what goes in and out ------------------------------------------------------------------------------------------


class _Rows:
    """New messages, column by column."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.bodies = [_encode(message) for message in messages]
        self.ids = [message.id for message in messages]
        self.queues = [message.queue for message in messages]
        self.priorities = [message.priority for message in messages]
        self.delays = [message.delay_seconds for message in messages]
        self.etas = [message.eta.timestamp() if message.eta is not None else None for message in messages]

    def parameters(self) -> tuple[_Array, ...]:
        return (
            _texts(self.ids),
            _texts(self.queues),
            _smalls(self.priorities),
            _floats(self.delays),
            _floats(self.etas),
            _bodies(self.bodies),
        )


class _Floors:
    """Below which nothing is ready, by queue and priority, as far as this process knows: what is given back by others it finds a little later."""

    def __init__(self) -> None:
        self._floors: dict[str, list[float]] = {}
        self._wide_at = 0.0

    def of(self, queues: Sequence[str]) -> _Array | None:
        """For `take`; None when it is time to look at everything."""
        if time.monotonic() >= self._wide_at:
            return None
        try:
            return _floats([floor for queue in queues for floor in self._floors[queue]])
        except KeyError:
            return None

    def learn(self, queues: Sequence[str], deliveries: Sequence[Delivery], seconds: float | None) -> None:
        """From what was taken; `seconds`: for how long everything was looked at."""
        if seconds is not None:
            self._wide_at = time.monotonic() + max(WIDE_LOOK_SECONDS, 20 * seconds)
        if len(self._floors) > 1000:
            self._floors = {}
        for queue in queues:
            self._floors.setdefault(queue, [-math.inf] * 10)
        seen = set()
        for delivery in deliveries:
            message = delivery.message
            if message is not None and 0 <= message.priority <= 9 and (delivery.queue, message.priority) not in seen:
                seen.add((delivery.queue, message.priority))
                self._floors[delivery.queue][message.priority] = delivery.waiting_since - LATE_COMMIT_SECONDS

    def forget(self) -> None:
        self._wide_at = 0.0


def _plain(settlements: Sequence[Settlement]) -> tuple[Any, ...] | None:
    """The parameters of EXCHANGE_DONE, when these are all DONE, of one holder, and nothing follows."""
    if not settlements:
        return _NOTHING_DONE
    lease = settlements[0].lease
    if lease is None:
        return None
    holder = lease.holder
    done = Verdict.DONE
    ids: list[str] = []
    tokens: list[int] = []
    records: list[Record] = []
    silent: list[str] = []
    for settlement in settlements:
        lease, record = settlement.lease, settlement.record
        if settlement.verdict is not done or lease is None or settlement.follow_ups or lease.holder != holder:
            return None
        ids.append(settlement.id)
        tokens.append(lease.token)
        if record is None:
            silent.append(settlement.id)
        elif record.task_id != settlement.id:
            return None
        else:
            records.append(record)
    if len(set(ids)) < len(ids):
        return None
    kept = _records(records) if records else (None, None, None, None)
    return (holder.node, holder.process, _texts(ids), _ints(tokens), *kept, _texts(silent) if silent else None)


_NOTHING_DONE = (None,) * 9


def _records(records: Sequence[Record]) -> tuple[_Array, ...]:
    return (
        _texts([record.task_id for record in records]),
        _texts([record.status for record in records]),
        _booleans([record.status in READY_STATES for record in records]),
        _bodies([_encode(record) for record in records]),
    )


def _delivery(result: pq.abc.PGresult, row: int, holder: Holder) -> Delivery:
    value = cast("Callable[[int, int], Any]", result.get_value)
    now = _float(value(row, 8))[0]
    body = value(row, 9)
    message: Message | None
    try:
        message = _decode_message(body)
        raw, error = b"", ""
        expired = message.expires is not None and now > message.expires.timestamp()
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as trouble:
        message, expired = None, False
        raw, error = body, f"The stored message cannot be decoded: {trouble}"
    return Delivery(
        id=_text(value(row, 1)),
        queue=_text(value(row, 2)),
        lease=Lease(holder, _int(value(row, 3))),
        message=message,
        crashes=_int(value(row, 4)),
        interruptions=_int(value(row, 5)),
        waiting_since=_float(value(row, 6))[0],
        expired=expired,
        revoked=value(row, 7) == b"\1",
        raw_message=raw,
        error=error,
    )


def _waiting(row: Any, now: float) -> Waiting:
    id, queue, state, due, at, _, _, node, process, crashes, interruptions, reason, died, body = row
    name = _STATES[state]
    if state == SCHEDULED and due <= now:
        name = "ready"
    try:
        message = _decode_message(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        message = None
    return Waiting(
        id=id,
        queue=queue,
        state=name,
        message=message,
        due_at=due,
        waiting_since=0.0 if name == "scheduled" and at == due else at,
        node=node,
        process=process,
        crashes=crashes,
        interruptions=interruptions,
        reason=reason,
        died_at=died,
    )


def _without(ids: Sequence[str], kept: Sequence[str] | None) -> list[str]:
    there = set(kept or ())
    return [id for id in ids if id not in there]


# -- PostgreSQL's binary format ----------------------------------------------------------------------------------------


class _Array(bytes):
    """An array, as it travels."""


_BOOL, _BYTEA, _INT8, _INT2, _INT4, _TEXT, _FLOAT8 = 16, 17, 20, 21, 23, 25, 701
_length = struct.Struct("!i").pack
_head = struct.Struct("!iiIii").pack
_float = struct.Struct("!d").unpack
_NULL = _length(-1)


def _array(oid: int, values: Iterable[bytes | None]) -> _Array:
    parts: list[bytes] = [b""]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_length(len(value)), value)
    if len(parts) == 1:
        return _Array(_head(0, 0, oid, 0, 0)[:12])
    count = sum(1 for _ in values)
    parts[0] = _head(1, 1, oid, count, 1)
    return _Array(b"".join(parts))


def _texts(values: Iterable[str | None]) -> _Array:
    return _array(_TEXT, [None if value is None else _clean(value).encode() for value in values])


def _bodies(values: Sequence[bytes | None]) -> _Array:
    return _array(_BYTEA, values)


def _packer(oid: int, format: str) -> Callable[[Sequence[Any]], _Array]:
    pack = struct.Struct(format).pack

    def pack_all(values: Sequence[Any]) -> _Array:
        return _array(oid, [None if value is None else pack(value) for value in values])

    return pack_all


_ints, _longs, _smalls = _packer(_INT4, "!i"), _packer(_INT8, "!q"), _packer(_INT2, "!h")
_floats, _booleans = _packer(_FLOAT8, "!d"), _packer(_BOOL, "!?")


def _parameter(value: Any) -> bytes:
    if isinstance(value, str):
        return _clean(value).encode()
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return repr(value).encode()


def _clean(text: str) -> str:
    """PostgreSQL's text has no room for NUL; what stands for it is doubled where it is meant."""
    if "\0" in text or "\x1a" in text:
        return text.replace("\x1a", "\x1a1").replace("\0", "\x1a0")
    return text


def _text(value: bytes) -> str:
    text = value.decode()
    if "\x1a" in text:
        return text.replace("\x1a0", "\0").replace("\x1a1", "\x1a")
    return text


def _int(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def _text_array(value: bytes) -> list[str]:
    (dimensions,) = struct.unpack_from("!i", value)
    if not dimensions:
        return []
    (count,) = struct.unpack_from("!i", value, 12)
    found, place = [], 20
    for _ in range(count):
        (length,) = struct.unpack_from("!i", value, place)
        found.append(_text(value[place + 4 : place + 4 + length]))
        place += 4 + length
    return found


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _BOOL: lambda value: value == b"\1",
    _BYTEA: bytes,
    _INT8: _int,
    _INT2: _int,
    _INT4: _int,
    _TEXT: _text,
    _FLOAT8: lambda value: _float(value)[0],
    1009: _text_array,
    2278: lambda value: None,
}


def _rows(result: pq.abc.PGresult) -> list[tuple[Any, ...]]:
    columns = range(result.nfields)
    decoders = [_DECODERS[result.ftype(column)] for column in columns]
    found = []
    for row in range(result.ntuples):
        values = [result.get_value(row, column) for column in columns]
        found.append(tuple(None if value is None else decode(value) for value, decode in zip(values, decoders, strict=True)))
    return found


# -- helpers -----------------------------------------------------------------------------------------------------------


def _wait(descriptor: int, deadline: float, *, write: bool = False) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Late
    if write:
        if not hasattr(select, "poll"):
            ready = bool(select.select((), (descriptor,), (), left)[1])
        else:
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            ready = bool(poll.poll(math.ceil(left * 1000)))
    else:
        ready = bool(_readable((descriptor,), left))
    if not ready and time.monotonic() >= deadline:
        raise _Late


def _readable(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Those that can be read, or are broken: whoever reads them will notice."""
    if not hasattr(select, "poll"):  # eventlet takes it away
        return list(select.select([one for one in descriptors if one >= 0], (), (), seconds)[0])
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(math.ceil(min(seconds, 1e6) * 1000))]


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


def _resolve(host: str, deadline: float) -> list[str]:
    """The addresses of a host. The system's resolver cannot be told how long it may take, so it is asked by a thread."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return [host]
    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))))
        except OSError as error:
            answer.append(error)

    thread = threading.Thread(target=ask, name="celeriac-resolve", daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not answer:
        raise OSError(f"no answer about {host} in time")
    if isinstance(answer[0], OSError):
        raise answer[0]
    return list(answer[0])


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _seed(schema: str) -> int:
    """Keeps the advisory locks of two schemas apart."""
    from zlib import crc32

    return 0x43454C59 << 31 | crc32(schema.encode()) >> 1


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL for libpq, and our own options of its query."""
    base, mark, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    ours = {name: value for name, value in pairs if name in OPTIONS}
    theirs = [(name, value) for name, value in pairs if name not in OPTIONS]
    return (f"{base}?{urlencode(theirs, quote_via=quote)}" if theirs else base), ours


def _options(given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(given.keys() - OPTIONS.keys())
    if unknown:
        raise ImproperlyConfigured(f"The PostgreSQL engine has no option {', '.join(unknown)}. It has {', '.join(OPTIONS)}.")
    values = {}
    for name, (read, default) in OPTIONS.items():
        try:
            values[name] = read(given[name]) if name in given else default
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"The PostgreSQL engine's option {name} is {given[name]!r}: {error}.") from None
    return values


def _identifier(value: Any) -> str:
    text = str(value)
    if not (text.isascii() and text.isidentifier() and text == text.lower() and len(text) <= 63):
        raise ValueError("it must be a name of lower-case letters, digits and underscores, of at most 63 characters")
    return text


def _boolean(value: Any) -> bool:
    if str(value).lower() in ("true", "1", "yes", "on"):
        return True
    if str(value).lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("it must be true or false")


def _positive(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def positive(value: Any) -> Any:
        number = read(value)
        if number <= 0:
            raise ValueError("it must be more than 0")
        return number

    return positive


OPTIONS.update({
    "schema": (_identifier, "celeriac"),
    "pool_size": (_positive(int), 10),
    "timeout_seconds": (_positive(float), 10.0),
    "listen": (_boolean, True),
    "prepare": (_boolean, True),
    "poll_seconds": (_positive(float), 0.1),
})  # fmt: skip

# -- forks -------------------------------------------------------------------------------------------------------------

_engines: WeakSet[PostgreSQLEngine] = WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

if TYPE_CHECKING:
    _complete: type[Engine] = PostgreSQLEngine
