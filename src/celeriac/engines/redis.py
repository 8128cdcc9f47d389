"""The engine of a Redis (6.2 or newer) or Valkey server, alone, behind Sentinel, or a Cluster.

    storage    a hash of messages and a hash of what is known of each; sorted sets of ids: ready and scheduled ones by queue, leased ones by node. Results are
               what Celery writes: `celery-task-meta-<id>`, a string of JSON that expires, told by pub/sub on the same name
    a crash    of a process loses nothing that a verb had answered. Of the server: what its persistence says (`appendonly yes`; `appendfsync everysec` may lose a
               second, `always` nothing). Of a primary: what had not reached the replica that took over
    order      priority, then how long it has waited, then the order of publishing
    atomic     every verb is one script, which Redis runs whole and alone: a settlement with its record and its follow-ups, and the next reservation, are one step
    waiting    a token in a sorted set for each queue, taken by BZPOPMIN: one wakes for each message, and who leaves ready work behind puts the token back. A look
               once a second is the net
    repeats    who publishes or settles signs with a pen of its own and a number; the server remembers the last number of each pen for a minute. So a call whose answer
               was lost is asked again and has happened once
    clocks     due times and leases follow the server's clock: setting *that* clock by more than a lease ends leases, since Redis has no other
    Cluster    all keys of an application bear one hash tag, so that a step is atomic there too, whatever queues it touches. Its memory and its work are those of one
               shard; the others stand by, or serve other applications (another `key_prefix`)
    bounded    results, letters and pens expire; waiting messages, dead letters and names of queues stay until somebody takes them; all else is as many as there are
               workers. No verb scans the key space
    cannot     keep anything when `maxmemory-policy` evicts keys: it must be `noeviction`

A connection belongs to one call at a time and is never shared with a child: after a fork the child closes its copies and opens its own.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha1
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote
from weakref import WeakSet

import msgspec

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.mailbox import Letter, Node
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import EngineUnavailable, ImproperlyConfigured, NodeLost
from ..core.message import Delivery, Holder, Lease, Message, Record, Revocation, Settlement, Verdict
from ..core.settings import mask_url
from ..core.states import READY_STATES

try:
    # Untyped, since its types are others in each version.
    _connection: Any = import_module("redis.connection")
    _retry: Any = import_module("redis.retry")
    _backoff: Any = import_module("redis.backoff")
    _crc: Any = import_module("redis.crc")
    _RedisError: Any = import_module("redis.exceptions").RedisError
except ImportError as missing:
    raise ImproperlyConfigured("redis:// URLs need the package redis. Install it: pip install 'celeriac[redis]'.") from missing

if TYPE_CHECKING:
    from ..contracts.engine import Engine
    from ..contracts.results import Subscription

# -- settings ----------------------------------------------------------------------------------------------------

LETTER_SECONDS = 60
"""How long a letter waits for its reader."""
PEN_SECONDS = 60
"""How long a repeat is known for one."""
NET_SECONDS = 1.0
"""How often a waiter looks, should a token have been lost."""
PING_SECONDS = 5.0
"""How often a subscription that hears nothing asks whether its connection lives."""
TRIES = 3
"""How often one call is sent when connections break under it."""
FAILURES = 3
"""After so many in a row the server counts as away: calls fail at once …"""
AWAY_SECONDS = 1.0
"""… and one of them is let through to try every so often."""
IDLE_LINKS = 32
"""How many unused connections a process keeps."""
CHUNK_BYTES = 262144

OPTIONS = ("key_prefix", "global_keyprefix", "cluster", "master_name", "sentinel_kwargs", "socket_timeout", "socket_connect_timeout")
CONNECTION_OPTIONS = (
    "db", "username", "password", "client_name", "socket_keepalive", "socket_keepalive_options", "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs",
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname", "ssl_password", "ssl_min_version", "ssl_ciphers",
)  # fmt: skip
MEANINGLESS = (
    "visibility_timeout", "priority_steps", "sep", "queue_order_strategy", "fanout_prefix", "fanout_patterns", "retry_on_timeout", "max_connections",
    "health_check_interval", "polling_interval", "unacked_restore_limit", "result_chord_ordered", "virtual_host", "max_retries", "interval_start",
    "interval_step", "interval_max",
)  # fmt: skip
"""What Celery's Redis transport needs to be told, and this engine does not."""

# -- Lua -----------------------------------------------------------------------------------------------------------

# KEYS: what our names begin with; what the names of results begin with.
# ARGV: the verb's arguments; and for the verbs that must not happen twice a pen, its number, and "1" when it may be a repeat.
#
# body    id → the message                                 nodes    node → its registration, JSON
# meta    id → {queue, priority, place, token, crashes,    leases   node, by when its lease runs out
#         interruptions, node, process, revocation,        holders  nodes that may hold something
#         number of its reservation}, of waiting ones      l:node   the same as meta, of those that the node holds
# r:queue place..id, by -priority: the ready ones
# s:queue id, by when it is due                            revokes  id, by until when it is remembered
# d:queue id, in the order of death                        paused   queue → who paused it
# dead    id → meta, reason, time                          queues   names of queues that may hold something
# deadbody id → the message                                w:queue  "!" something is ready, "~" something comes due earlier than was known
# b:, bw:address  letters, and their token                 p:, x:pen  what a pen did last
#
# first   does not exist. A script whose first write needs no memory may go on when the server has none left: so what is there is still worked off, and leases
#         are renewed, while new tasks are refused.
#
# A place is a moment in microseconds and a number, both of fixed width: so places compare as text, over all queues.
HEAD = (
    f"local PEN_SECONDS = {PEN_SECONDS}"
    + """
local P, R, call, pack = KEYS[1], KEYS[2], redis.call, cmsgpack.pack
local open, format, BODY, META = cmsgpack.unpack, string.format, KEYS[1] .. 'body', KEYS[1] .. 'meta'
local A = open(ARGV[1])
local now, mono, ttl, index = A[1], A[2], A[3], A[4]
if not now then
  local t = call('TIME')
  now = t[1] + t[2] / 1000000
  mono = now
end
local function each(command, key, things)
  for i = 1, #things, 1000 do call(command, key, unpack(things, i, math.min(i + 999, #things))) end
end
local function holding(id)
  for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
    local packed = call('HGET', P .. 'l:' .. node, id)
    if packed then return packed, P .. 'l:' .. node end
  end
end
local function many(command, key, things)
  if #things <= 1000 then return #things == 0 and {} or call(command, key, unpack(things)) end
  local found = {}
  for i = 1, #things, 1000 do
    local part = call(command, key, unpack(things, i, math.min(i + 999, #things)))
    for j = 1, #part do found[#found + 1] = part[j] or false end
  end
  return found
end
"""
)

# → ready, or scheduled.
PUBLISHING = """
local wakes, number, spare, block = {}, 0, 0, 1
local function place_at(at)
  if spare == 0 then
    spare = block
    number = call('INCRBY', P .. 'n', block) - block
  end
  spare, number = spare - 1, number + 1
  return format('%017.0f%015.0f', at * 1000000, number)
end
local function ready(queue, priority, place, id)
  call('ZADD', P .. 'r:' .. queue, -priority, place .. id)
  wakes[queue] = '!'
end
local function schedule(queue, id, due)
  local first = call('ZRANGE', P .. 's:' .. queue, 0, 0, 'WITHSCORES')[2]
  call('ZADD', P .. 's:' .. queue, due, id)
  if not wakes[queue] then wakes[queue] = '' end
  if wakes[queue] == '' and (not first or due < tonumber(first)) then wakes[queue] = '~' end
end
local function publish(row, token)
  local id, queue = row[1], row[2]
  if call('HSETNX', BODY, id, row[6]) == 0 then return end
  local due, at = row[5], now
  if row[4] then due = now + row[4] end
  local later = due and due > now
  if later then at = due end
  local place = place_at(at)
  call('HSET', META, id, pack({queue, row[3], place, token, 0, 0, false, 0, false, 0}))
  if later then schedule(queue, id, due) else ready(queue, row[3], place, id) end
end
local function announce()
  if not next(wakes) then return end
  local some_paused = call('EXISTS', P .. 'paused') == 1
  for queue, token in pairs(wakes) do
    call('SADD', P .. 'queues', queue)
    if token ~= '' and not (some_paused and call('HEXISTS', P .. 'paused', queue) == 1) then call('ZADD', P .. 'w:' .. queue, 0, token) end
  end
end
"""

STORING = """
local function is_ready(text)
  local good, found = pcall(cjson.decode, text)
  local status = good and type(found) == 'table' and found.status
  return status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED'
end
local function store(record)
  local key = R .. record[1]
  if not record[2] then
    local known = call('GET', key)
    if known and is_ready(known) then return false end
  end
  if ttl then call('SET', key, record[3], 'PX', ttl) else call('SET', key, record[3]) end
  if index then call('ZADD', P .. 'stored', now, record[1]) end
  call('PUBLISH', key, record[3])
  return true
end
"""

# leased → somewhere else.
MOVING = """
local function end_revoked(id, m)
  call('HDEL', BODY, id)
  if type(m[9]) == 'table' then store(m[9]) end
end
local function give_back(id, m, crashed, delay)
  if crashed then m[5] = m[5] + 1 else m[6] = m[6] + 1 end
  m[7], m[8], m[10] = false, 0, 0
  call('HSET', META, id, pack(m))
  if delay > 0 then schedule(m[1], id, now + delay) else ready(m[1], m[2], m[3], id) end
end
local function leave(node, crashed)
  local held, rows, ids = call('HGETALL', P .. 'l:' .. node), {}, {}
  for i = 1, #held, 2 do rows[#rows + 1] = {held[i], open(held[i + 1])} end
  table.sort(rows, function(a, b) return a[2][10] < b[2][10] end)
  call('HDEL', P .. 'nodes', node)
  call('ZREM', P .. 'leases', node)
  call('SREM', P .. 'holders', node)
  call('DEL', P .. 'l:' .. node)
  for i, row in ipairs(rows) do
    local id, m = row[1], row[2]
    ids[i] = id
    if m[9] then end_revoked(id, m) else give_back(id, m, crashed, 0) end
  end
  return ids
end
"""

PROMOTING = """
local function promote(queue)
  local key = P .. 's:' .. queue
  local due = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 1000)
  if #due == 0 then return end
  call('DEL', P .. 'first')
  local metas = call('HMGET', META, unpack(due))
  for i, id in ipairs(due) do
    if metas[i] then
      local m = open(metas[i])
      call('ZADD', P .. 'r:' .. queue, -m[2], m[3] .. id)
    end
  end
  call('ZREM', key, unpack(due))
end
"""

PUBLISH = (
    HEAD
    + PUBLISHING
    + """
local pen = P .. 'p:' .. ARGV[2]
if ARGV[4] == '1' and call('GET', pen) == ARGV[3] then return 0 end
block = #A[5]
for _, row in ipairs(A[5]) do publish(row, 0) end
announce()
call('SET', pen, ARGV[3], 'EX', PEN_SECONDS)
return 1
"""
)

EXCHANGE = (
    HEAD
    + PUBLISHING
    + STORING
    + MOVING
    + PROMOTING
    + """
local node, process, queues, limit, fast, S = A[5], A[6], A[7], A[8], A[9], A[10]
if node and call('HEXISTS', P .. 'nodes', node) == 0 then return redis.error_reply('NODELOST The node is not registered.') end
call('DEL', P .. 'first')
local pen, done, ids, refused, before = P .. 'x:' .. ARGV[2], {}, {}, {}, nil
if ARGV[4] == '1' then
  local kept = call('GET', pen)
  kept = kept and open(kept)
  if kept and kept[1] == ARGV[3] then
    before, done = {}, kept[2]
    for _, id in ipairs(done) do before[id] = true end
    for _, id in ipairs(kept[3]) do
      local m = node and call('HGET', P .. 'l:' .. node, id)
      if m and open(m)[8] == process then ids[#ids + 1] = id end
    end
  end
end

local function settle(s)
  local id, verdict = s[1], s[2]
  if s[3] then
    local m = call('HGET', P .. 'l:' .. s[3], id)
    m = m and open(m)
    if not m or m[8] ~= s[4] or m[4] ~= s[5] then return false end
    call('HDEL', P .. 'l:' .. s[3], id)
    if s[9] then store(s[9]) end
    if m[9] and verdict ~= 'done' and verdict ~= 'dead' then
      end_revoked(id, m)
    elseif verdict == 'done' then
      call('HDEL', BODY, id)
    elseif verdict == 'retry' then
      call('HDEL', BODY, id)
      publish(s[8], m[4])
    elseif verdict == 'dead' then
      local old = call('HGET', P .. 'dead', id)
      if old then call('ZREM', P .. 'd:' .. open(old)[1], id) end
      call('HSET', P .. 'dead', id, pack({m[1], m[2], m[3], m[4], m[5], m[6], s[6], now}))
      call('HSET', P .. 'deadbody', id, call('HGET', BODY, id))
      call('ZADD', P .. 'd:' .. m[1], call('INCR', P .. 'deaths'), id)
      call('SADD', P .. 'queues', m[1])
      call('HDEL', BODY, id)
    else
      if s[8] then
        m[1], m[2] = s[8][2], s[8][3]
        call('HSET', BODY, id, s[8][6])
      end
      give_back(id, m, verdict == 'crashed', verdict == 'released' and s[7] or 0)
    end
  elseif s[9] then
    store(s[9])
  end
  for _, row in ipairs(s[10] or {}) do publish(row, 0) end
  return true
end

if fast and not before then
  -- All of one node, all done, nothing follows.
  local things, gone, hand = {}, {}, P .. 'l:' .. S[1][3]
  for i = 1, #S do things[i] = S[i][1] end
  local metas = many('HMGET', hand, things)
  for i, s in ipairs(S) do
    local m = metas[i] and open(metas[i])
    if m and m[8] == s[4] and m[4] == s[5] then
      gone[#gone + 1] = s[1]
      if s[9] then store(s[9]) end
    else
      refused[#refused + 1] = s[1]
    end
  end
  if #gone > 0 then
    each('HDEL', hand, gone)
    each('HDEL', BODY, gone)
  end
  done = gone
else
  for _, s in ipairs(S) do
    if not (before and before[s[1]]) then
      if settle(s) then done[#done + 1] = s[1] else refused[#refused + 1] = s[1] end
    end
  end
end

local metas, revoked = {}, {}
if #ids > 0 then
  metas = many('HMGET', P .. 'l:' .. node, ids)
elseif node and limit > 0 then
  local open_queues, some_paused = {}, call('EXISTS', P .. 'paused') == 1
  for _, queue in ipairs(queues) do
    if not (some_paused and call('HEXISTS', P .. 'paused', queue) == 1) then
      promote(queue)
      open_queues[#open_queues + 1] = queue
    end
  end
  if #open_queues == 1 then
    local popped = call('ZPOPMIN', P .. 'r:' .. open_queues[1], limit)
    for i = 1, #popped, 2 do ids[#ids + 1] = popped[i]:sub(33) end
  else
    -- The best of the heads of all queues, again and again.
    local heads = {}
    for i, queue in ipairs(open_queues) do heads[i] = {1, call('ZRANGE', P .. 'r:' .. queue, 0, limit - 1, 'WITHSCORES')} end
    while #ids < limit do
      local best, score, member
      for _, head in ipairs(heads) do
        local m, s = head[2][head[1]], tonumber(head[2][head[1] + 1])
        if m and (not best or s < score or (s == score and m < member)) then best, score, member = head, s, m end
      end
      if not best then break end
      ids[#ids + 1] = member:sub(33)
      best[1] = best[1] + 2
    end
    for i, queue in ipairs(open_queues) do
      local taken = (heads[i][1] - 1) / 2
      if taken > 0 then call('ZREMRANGEBYRANK', P .. 'r:' .. queue, 0, taken - 1) end
    end
  end
  if #ids > 0 then
    local found, fields, kept = many('HMGET', META, ids), {}, {}
    local taken = call('INCRBY', P .. 'taken', #ids) - #ids
    for i, id in ipairs(ids) do
      if found[i] then
        local m = open(found[i])
        m[4], m[7], m[8], m[10] = m[4] + 1, node, process, taken + i
        local packed = pack(m)
        kept[#kept + 1], metas[#metas + 1] = id, packed
        fields[#fields + 1], fields[#fields + 2] = id, packed
      end
    end
    ids = kept
    each('HDEL', META, ids)
    each('HSET', P .. 'l:' .. node, fields)
    call('SADD', P .. 'holders', node)
  end
  for _, queue in ipairs(open_queues) do
    if call('EXISTS', P .. 'r:' .. queue) == 1 then
      wakes[queue] = '!'
    else
      call('ZREM', P .. 'w:' .. queue, '!')
      if wakes[queue] == '!' then wakes[queue] = nil end
    end
  end
end
announce()
if #ids > 0 and call('EXISTS', P .. 'revokes') == 1 then
  for _, id in ipairs(ids) do
    local til = call('ZSCORE', P .. 'revokes', id)
    if til and tonumber(til) > now then revoked[#revoked + 1] = id end
  end
end
if #done > 0 or #ids > 0 then call('SET', pen, pack({ARGV[3], done, ids}), 'EX', PEN_SECONDS) end
return {format('%.6f', now), refused, ids, metas, many('HMGET', BODY, ids), revoked}
"""
)

# What EXCHANGE does when all is well: everything is done, nothing follows, one queue. Without functions and with few tables, since what a script leaves to
# Lua's collector costs more than what it asks of Redis. Repeats go through EXCHANGE, and both remember alike.
QUICK = (
    f"local PEN_SECONDS = {PEN_SECONDS}"
    + """
local P, R, call, open, pack = KEYS[1], KEYS[2], redis.call, cmsgpack.unpack, cmsgpack.pack
local A = open(ARGV[1])
local now, ttl, index, node, process, queue, limit, S = A[1], A[3], A[4], A[5], A[6], A[7], A[8], A[9]
if not now then
  local t = call('TIME')
  now = t[1] + t[2] / 1000000
end
if call('HEXISTS', P .. 'nodes', node) == 0 then return redis.error_reply('NODELOST The node is not registered.') end
call('DEL', P .. 'first')
local refused, done, ids, metas, bodies, revoked = {}, {}, {}, {}, {}, {}
if #S > 0 then
  local hand = P .. 'l:' .. S[1][3]
  for i = 1, #S do ids[i] = S[i][1] end
  local held = call('HMGET', hand, unpack(ids))
  for i = 1, #S do
    local s = S[i]
    local m = held[i] and open(held[i])
    if m and m[8] == s[4] and m[4] == s[5] then
      done[#done + 1] = s[1]
      local record = s[9]
      if record then
        local key = R .. record[1]
        if ttl then call('SET', key, record[3], 'PX', ttl) else call('SET', key, record[3]) end
        if index then call('ZADD', P .. 'stored', now, record[1]) end
        call('PUBLISH', key, record[3])
      end
    else
      refused[#refused + 1] = s[1]
    end
  end
  if #done > 0 then
    call('HDEL', hand, unpack(done))
    call('HDEL', P .. 'body', unpack(done))
  end
  ids = {}
end
if limit > 0 and call('HEXISTS', P .. 'paused', queue) == 0 then
  local ready, scheduled = P .. 'r:' .. queue, P .. 's:' .. queue
  local due = call('ZRANGEBYSCORE', scheduled, '-inf', now, 'LIMIT', 0, 1000)
  if #due > 0 then
    local found = call('HMGET', P .. 'meta', unpack(due))
    for i = 1, #due do
      if found[i] then
        local m = open(found[i])
        call('ZADD', ready, -m[2], m[3] .. due[i])
      end
    end
    call('ZREM', scheduled, unpack(due))
  end
  local popped = call('ZPOPMIN', ready, limit)
  if #popped > 0 then
    for i = 1, #popped, 2 do ids[#ids + 1] = popped[i]:sub(33) end
    local found, fields = call('HMGET', P .. 'meta', unpack(ids)), {}
    local taken = call('INCRBY', P .. 'taken', #ids) - #ids
    local kept = 0
    for i = 1, #ids do
      if found[i] then
        local m = open(found[i])
        m[4], m[7], m[8], m[10] = m[4] + 1, node, process, taken + i
        kept = kept + 1
        ids[kept], metas[kept] = ids[i], pack(m)
        fields[2 * kept - 1], fields[2 * kept] = ids[kept], metas[kept]
      end
    end
    for i = #ids, kept + 1, -1 do ids[i] = nil end
    if kept > 0 then
      call('HDEL', P .. 'meta', unpack(ids))
      call('HSET', P .. 'l:' .. node, unpack(fields))
      call('SADD', P .. 'holders', node)
      bodies = call('HMGET', P .. 'body', unpack(ids))
      if call('EXISTS', P .. 'revokes') == 1 then
        for i = 1, kept do
          local til = call('ZSCORE', P .. 'revokes', ids[i])
          if til and tonumber(til) > now then revoked[#revoked + 1] = ids[i] end
        end
      end
    end
  end
  if #popped == 2 * limit and call('EXISTS', ready) == 1 then
    call('ZADD', P .. 'w:' .. queue, 0, '!')
  else
    call('ZREM', P .. 'w:' .. queue, '!')
  end
end
if #done > 0 or #ids > 0 then call('SET', P .. 'x:' .. ARGV[2], pack({ARGV[3], done, ids}), 'EX', PEN_SECONDS) end
return {string.format('%.6f', now), refused, ids, metas, bodies, revoked}
"""
)
QUICK_LIMIT = 500

HELD = (
    HEAD
    + """
local held, ids, metas, revoked = call('HGETALL', P .. 'l:' .. A[5]), {}, {}, {}
for i = 1, #held, 2 do ids[#ids + 1], metas[#metas + 1] = held[i], held[i + 1] end
for _, id in ipairs(ids) do
  local til = call('ZSCORE', P .. 'revokes', id)
  if til and tonumber(til) > now then revoked[#revoked + 1] = id end
end
return {format('%.6f', now), {}, ids, metas, many('HMGET', BODY, ids), revoked}
"""
)

REVOKE = (
    HEAD
    + STORING
    + """
local answers = {}
call('ZREMRANGEBYSCORE', P .. 'revokes', '-inf', now)
for i, r in ipairs(A[5]) do
  local id, m = r[1], call('HGET', META, r[1])
  if m then
    m = open(m)
    call('ZREM', P .. 'r:' .. m[1], m[3] .. id)
    call('ZREM', P .. 's:' .. m[1], id)
    call('HDEL', META, id)
    call('HDEL', BODY, id)
    if r[2] then store(r[2]) end
    answers[i] = 'waiting'
  else
    call('ZADD', P .. 'revokes', now + A[6], id)
    answers[i] = 'unknown'
    local packed, hand = holding(id)
    if packed then
      answers[i] = 'running'
      m = open(packed)
      m[9] = r[2] or true
      call('HSET', hand, id, pack(m))
      if r[3] then
        local box, bell = P .. 'b:' .. m[7], P .. 'bw:' .. m[7]
        call('RPUSH', box, format('%.6f ', mono) .. r[3])
        call('EXPIRE', box, A[7])
        call('ZADD', bell, 0, '!')
        call('EXPIRE', bell, A[7])
      end
    end
  end
end
return answers
"""
)

REGISTER = (
    HEAD
    + """
call('DEL', P .. 'first')
call('HSET', P .. 'nodes', A[5], A[6])
call('ZADD', P .. 'leases', mono + A[7], A[5])
return 1
"""
)
HEARTBEAT = (
    HEAD
    + """
if call('HEXISTS', P .. 'nodes', A[5]) == 0 then return 0 end
call('DEL', P .. 'first')
call('ZADD', P .. 'leases', mono + A[6], A[5])
return 1
"""
)
NODES = (
    HEAD
    + """
return {format('%.6f', mono), call('HGETALL', P .. 'nodes'), call('ZRANGE', P .. 'leases', 0, -1, 'WITHSCORES')}
"""
)
UNREGISTER = (
    HEAD
    + PUBLISHING
    + STORING
    + MOVING
    + """
leave(A[5], false)
announce()
return 1
"""
)
RECLAIM = (
    HEAD
    + PUBLISHING
    + STORING
    + MOVING
    + """
local lost, seen, ids = {}, {}, {}
local function add(node)
  if not seen[node] then
    seen[node] = true
    lost[#lost + 1] = node
  end
end
for _, node in ipairs(A[5]) do add(node) end
for _, node in ipairs(call('ZRANGEBYSCORE', P .. 'leases', '-inf', mono)) do add(node) end
for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
  if call('HEXISTS', P .. 'nodes', node) == 0 then add(node) end
end
for _, node in ipairs(lost) do
  for _, id in ipairs(leave(node, true)) do ids[#ids + 1] = id end
end
announce()
return ids
"""
)

OUTLOOK = (
    HEAD
    + """
local nearest
for _, queue in ipairs(A[5]) do
  if call('HEXISTS', P .. 'paused', queue) == 0 then
    if call('EXISTS', P .. 'r:' .. queue) == 1 then return '0' end
    local due = call('ZRANGE', P .. 's:' .. queue, 0, 0, 'WITHSCORES')[2]
    if due and (not nearest or tonumber(due) < nearest) then nearest = tonumber(due) end
  end
end
return nearest and format('%.6f', nearest - now) or ''
"""
)

STORE = (
    HEAD
    + STORING
    + """
local refused, lease = {}, A[6]
for _, record in ipairs(A[5]) do
  local m = lease and call('HGET', P .. 'l:' .. lease[1], record[1])
  m = m and open(m)
  if lease and not (m and m[8] == lease[2] and m[4] == lease[3]) or not store(record) then
    refused[#refused + 1] = record[1]
  end
end
return refused
"""
)
FETCH = (
    HEAD
    + """
local found = {}
for i, id in ipairs(A[5]) do found[i] = call('GET', R .. id) end
return found
"""
)
FORGET = (
    HEAD
    + """
for _, id in ipairs(A[5]) do
  call('DEL', R .. id)
  if index then call('ZREM', P .. 'stored', id) end
end
return 1
"""
)
PRUNE = (
    HEAD
    + """
call('ZREMRANGEBYSCORE', P .. 'revokes', '-inf', now)
if not (index and ttl) then return 0 end
local old = call('ZRANGEBYSCORE', P .. 'stored', '-inf', format('(%.6f', now - ttl / 1000), 'LIMIT', 0, A[5])
for _, id in ipairs(old) do
  call('DEL', R .. id)
  call('ZREM', P .. 'stored', id)
end
return #old
"""
)

QUEUES = (
    HEAD
    + """
local names, seen = {}, {}
local function add(queue)
  if not seen[queue] then
    seen[queue] = true
    names[#names + 1] = queue
  end
end
for _, queue in ipairs(call('HKEYS', P .. 'paused')) do add(queue) end
for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
  for _, packed in ipairs(call('HVALS', P .. 'l:' .. node)) do add(open(packed)[1]) end
end
for _, queue in ipairs(call('SMEMBERS', P .. 'queues')) do
  if call('EXISTS', P .. 'r:' .. queue, P .. 's:' .. queue, P .. 'd:' .. queue) > 0 then add(queue) end
end
return names
"""
)
DEPTH = (
    HEAD
    + """
local leased, counts = {}, {}
for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
  for _, packed in ipairs(call('HVALS', P .. 'l:' .. node)) do
    local queue = open(packed)[1]
    leased[queue] = (leased[queue] or 0) + 1
  end
end
for i, queue in ipairs(A[5]) do
  local due = call('ZCOUNT', P .. 's:' .. queue, '-inf', now)
  counts[i] = {
    call('ZCARD', P .. 'r:' .. queue) + due, call('ZCARD', P .. 's:' .. queue) - due, leased[queue] or 0, call('ZCARD', P .. 'd:' .. queue),
    call('HGET', P .. 'paused', queue),
  }
end
return counts
"""
)
PEEK = (
    HEAD
    + PROMOTING
    + """
local queue, state, first, last = A[5], A[6], A[7], A[7] + A[8] - 1
local ids, metas, scores = {}, nil, {}
if last < first then return {{}, {}, {}, {}} end
if state == 'ready' then
  promote(queue)
  for i, member in ipairs(call('ZRANGE', P .. 'r:' .. queue, first, last)) do ids[i], scores[i] = member:sub(33), '' end
elseif state == 'scheduled' then
  local found = call('ZRANGEBYSCORE', P .. 's:' .. queue, format('(%.17g', now), '+inf', 'WITHSCORES', 'LIMIT', first, A[8])
  for i = 1, #found, 2 do ids[#ids + 1], scores[#scores + 1] = found[i], found[i + 1] end
elseif state == 'dead' then
  ids = call('ZREVRANGE', P .. 'd:' .. queue, first, last)
  for i = 1, #ids do scores[i] = '' end
  return {ids, many('HMGET', P .. 'dead', ids), many('HMGET', P .. 'deadbody', ids), scores}
else
  local rows = {}
  for _, node in ipairs(call('SMEMBERS', P .. 'holders')) do
    local held = call('HGETALL', P .. 'l:' .. node)
    for i = 1, #held, 2 do
      local m = open(held[i + 1])
      if m[1] == queue then rows[#rows + 1] = {-m[2], m[3], held[i], held[i + 1]} end
    end
  end
  table.sort(rows, function(a, b) if a[1] ~= b[1] then return a[1] < b[1] end return a[2] < b[2] end)
  metas = {}
  for i = first + 1, math.min(last + 1, #rows) do ids[#ids + 1], metas[#metas + 1], scores[#scores + 1] = rows[i][3], rows[i][4], '' end
end
return {ids, metas or many('HMGET', META, ids), many('HMGET', BODY, ids), scores}
"""
)
FIND = (
    HEAD
    + PROMOTING
    + """
local found, promoted = {}, {}
for i, id in ipairs(A[5]) do
  local packed, due, ahead = call('HGET', META, id), '', -1
  if packed then
    local m = open(packed)
    if not promoted[m[1]] then
      promote(m[1])
      promoted[m[1]] = true
    end
    due = call('ZSCORE', P .. 's:' .. m[1], id) or ''
    if due == '' then ahead = call('ZRANK', P .. 'r:' .. m[1], m[3] .. id) or 0 end
  else
    packed = holding(id)
  end
  if packed then
    found[i] = {packed, call('HGET', BODY, id), due, ahead}
  else
    packed = call('HGET', P .. 'dead', id)
    found[i] = packed and {packed, call('HGET', P .. 'deadbody', id), 'dead', -1} or false
  end
end
return found
"""
)
REVOKED = (
    HEAD
    + """
local ids = {}
for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'revokes', format('(%.17g', now), '+inf')) do
  if call('HEXISTS', META, id) == 0 then ids[#ids + 1] = id end
end
return ids
"""
)
PURGE = (
    HEAD
    + """
local ids = {}
local ready = call('ZPOPMIN', P .. 'r:' .. A[5], A[6])
for i = 1, #ready, 2 do ids[#ids + 1] = ready[i]:sub(33) end
local scheduled = call('ZPOPMIN', P .. 's:' .. A[5], A[6])
for i = 1, #scheduled, 2 do ids[#ids + 1] = scheduled[i] end
each('HDEL', META, ids)
each('HDEL', BODY, ids)
return #ids
"""
)
PAUSE = HEAD + "for _, queue in ipairs(A[5]) do call('HSET', P .. 'paused', queue, A[6]) end return 1"
RESUME = (
    HEAD
    + """
for _, queue in ipairs(A[5]) do
  if call('HDEL', P .. 'paused', queue) == 1 then call('ZADD', P .. 'w:' .. queue, 0, '!') end
end
return 1
"""
)
REPLAY = (
    HEAD
    + PUBLISHING
    + """
local replayed = {}
for _, id in ipairs(A[5]) do
  local packed = call('HGET', P .. 'dead', id)
  if packed and call('HEXISTS', BODY, id) == 0 then
    local m = open(packed)
    local place = place_at(now)
    call('HSET', BODY, id, call('HGET', P .. 'deadbody', id))
    call('HSET', META, id, pack({m[1], m[2], place, m[4], 0, 0, false, 0, false, 0}))
    ready(m[1], m[2], place, id)
    call('HDEL', P .. 'dead', id)
    call('HDEL', P .. 'deadbody', id)
    call('ZREM', P .. 'd:' .. m[1], id)
    replayed[#replayed + 1] = id
  end
end
announce()
return replayed
"""
)
DISCARD = (
    HEAD
    + """
local discarded = {}
for _, id in ipairs(A[5]) do
  local packed = call('HGET', P .. 'dead', id)
  if packed then
    call('HDEL', P .. 'dead', id)
    call('HDEL', P .. 'deadbody', id)
    call('ZREM', P .. 'd:' .. open(packed)[1], id)
    discarded[#discarded + 1] = id
  end
end
return discarded
"""
)
POST = (
    HEAD
    + """
for _, address in ipairs(A[5]) do
  local box, bell = P .. 'b:' .. address, P .. 'bw:' .. address
  call('RPUSH', box, format('%.6f ', mono) .. A[6])
  call('EXPIRE', box, A[7])
  call('ZADD', bell, 0, '!')
  call('EXPIRE', bell, A[7])
end
return 1
"""
)
COLLECT = (
    HEAD
    + """
local letters = call('LRANGE', P .. 'b:' .. A[5], 0, -1)
if #letters > 0 then call('DEL', P .. 'b:' .. A[5], P .. 'bw:' .. A[5]) end
return {format('%.6f', mono), letters}
"""
)
NOW = "local t = redis.call('TIME') return t"

_encode_bytes = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_node = msgspec.json.Decoder(Node).decode


def _encode(value: Any) -> str:
    """JSON as text, since the server's MessagePack knows no bytes."""
    return _encode_bytes(value).decode()


class _Script:
    """A script, and how a request for it begins."""

    __slots__ = ("head", "load", "sha", "text")

    def __init__(self, text: str, keys: Sequence[bytes], arguments: int) -> None:
        self.text = text.encode()
        self.sha = sha1(self.text).hexdigest().encode()
        self.load = _request(b"SCRIPT", b"LOAD", self.text)
        self.head = b"*%d\r\n" % (3 + len(keys) + arguments) + b"".join(
            _bulk(part) for part in (b"EVALSHA", self.sha, b"%d" % len(keys), *keys)
        )


class RedisEngine:
    """The engine of `redis://`, `rediss://`, `redis+socket://`, `unix://`, `sentinel://`, `redis+cluster://` and `rediss+cluster://`.

    Options, also in the URL's query: `key_prefix` (or Celery's `global_keyprefix`: all our keys and channels begin with it), `cluster`, `master_name` and
    `sentinel_kwargs` (Sentinel), `socket_timeout` (how long a verb waits for the server), `socket_connect_timeout`, and redis-py's `ssl_…`, `username`, `password`, `client_name`.
    """

    capabilities = Capabilities(engine="redis")

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
        self._clock = clock
        self._own_clock = clock is not SYSTEM_CLOCK
        self._ttl_milliseconds = max(1, round(result_expires * 1000)) if result_expires else None
        self._revokes_expire_seconds = revokes_expire_seconds
        place = _Place(url, transport_options)
        self._server = _Server(place)
        self._prefix = (place.key_prefix + "celeriac:").encode()
        self._results = (place.key_prefix + "celery-task-meta-").encode()
        self._seconds = place.timeout_seconds
        self._scripts: dict[str, _Script] = {}
        self._pens: deque[_Pen] = deque()
        self._unsure: dict[Any, tuple[_Pen, float]] = {}
        _engines.add(self)

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
        if not messages:
            return
        rows = [_row(message) for message in messages]
        key = rows[0][0] if len(rows) == 1 else tuple([row[0] for row in rows])
        self._once(PUBLISH, key, self._seconds if timeout_seconds is None else timeout_seconds, rows)

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder) -> list[Delivery]:
        return self.exchange((), queues, limit=limit, holder=holder)[1]

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        if not settlements:
            return []
        rows, fast = self._settlement_rows(settlements)
        key = ("settle", *[settlement.id for settlement in settlements])
        return _texts(self._once(EXCHANGE, key, self._seconds, None, 0, (), 0, fast, rows)[1])

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        rows, fast = self._settlement_rows(settlements)
        names = list(dict.fromkeys(queues)) if len(queues) > 1 else list(queues)
        quick = None
        if (
            (fast or not rows)
            and len(names) == 1
            and len(rows) <= QUICK_LIMIT >= limit
            and all(row[8] is None or row[8][1] for row in rows)
        ):
            quick = (holder.node, holder.process, names[0], limit, rows)
        try:
            reply = self._once(EXCHANGE, holder, self._seconds, holder.node, holder.process, names, limit, fast, rows, quick=quick)
        except _NodeLost:
            raise NodeLost(holder.node) from None
        return _texts(reply[1]), _deliveries(reply)

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        reply = self._run(HELD, node)
        rows = sorted(zip(reply[2], reply[3], reply[4], strict=True), key=lambda row: _unpack(row[1])[9])
        deliveries = _deliveries([reply[0], (), *zip(*rows, strict=True), reply[5]]) if rows else []
        return [delivery for delivery in deliveries if process in (None, delivery.lease.holder.process)]

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        rows = []
        for revocation in revocations:
            letter = Letter(method="terminate", arguments={"task_id": revocation.id, "signal": revocation.signal})
            record = _record_row(revocation.record) if revocation.record is not None else None
            rows.append((revocation.id, record, _encode(letter) if revocation.terminate else None))
        if not rows:
            return {}
        answers = _texts(self._run(REVOKE, rows, self._revokes_expire_seconds, LETTER_SECONDS))
        return {row[0]: answer for row, answer in zip(rows, answers, strict=True)}

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        self._run(REGISTER, node.id, _encode(node), lease_seconds)

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        return bool(self._run(HEARTBEAT, node, lease_seconds))

    def unregister(self, node: str) -> None:
        self._run(UNREGISTER, node)

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        return _texts(self._run(RECLAIM, list(nodes)))

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        names = list(dict.fromkeys(queues))
        tokens = [self._prefix + b"w:" + name.encode() for name in names]
        while True:
            outlook = self._run(OUTLOOK, names)
            seconds = float(outlook) if outlook else NET_SECONDS
            left = deadline - time.monotonic()
            if seconds <= 0 or left <= 0:
                return seconds <= 0
            if not tokens:
                time.sleep(left)
                return False
            # A token "!" says that something is ready; "~" that the outlook has changed.
            token = self._take_token(tokens, min(left, seconds, NET_SECONDS))
            if token == b"!":
                return True

    def close(self) -> None:
        self._server.close()

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        rows = [_record_row(record) for record in records]
        fence = (lease.holder.node, lease.holder.process, lease.token) if lease is not None else None
        return _texts(self._run(STORE, rows, fence)) if rows else []

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        bodies = self._run(FETCH, list(ids))
        return {id: _read_record(id, body) for id, body in zip(ids, bodies, strict=True) if body is not None}

    def forget(self, ids: Sequence[str]) -> None:
        self._run(FORGET, list(ids))

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        return _Subscription(self._server, [self._results + id.encode() for id in dict.fromkeys(ids)], self._seconds)

    def prune(self, limit: int = 1000) -> int:
        """Results expire by themselves, by the server's clock. With a clock of its own the engine removes them."""
        return int(self._run(PRUNE, limit))

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        if self._own_clock:
            return self._clock.time()
        seconds, microseconds = self._run(NOW)
        return int(seconds) + int(microseconds) / 1e6

    def queues(self) -> list[str]:
        return sorted(_texts(self._run(QUEUES)))

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        names = list(dict.fromkeys(self.queues() if queues is None else queues))
        return {
            name: Depth(ready=ready, scheduled=scheduled, leased=leased, dead=dead, paused_by=by.decode() if by is not None else None)
            for name, (ready, scheduled, leased, dead, by) in zip(names, self._run(DEPTH, names), strict=True)
        }

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state not in ("ready", "scheduled", "leased", "dead"):
            raise ValueError(f"There is no state {state!r} of a message; there are ready, scheduled, leased, dead.")
        ids, metas, bodies, scores = self._run(PEEK, queue, state, max(0, offset), max(0, limit))
        return [
            _dead(id.decode(), meta, body) if state == "dead" else _waiting(id.decode(), meta, body, score)
            for id, meta, body, score in zip(ids, metas, bodies, scores, strict=True)
            if meta is not None
        ]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        found: dict[str, Waiting] = {}
        for id, row in zip(ids, self._run(FIND, list(ids)) if ids else (), strict=True):
            if row is None:
                continue
            meta, body, due, ahead = row
            found[id] = _dead(id, meta, body) if due == b"dead" else _waiting(id, meta, body, due, ahead if ahead >= 0 else None)
        return found

    def revoked(self) -> list[str]:
        return _texts(self._run(REVOKED))

    def purge(self, queues: Sequence[str]) -> int:
        purged = 0
        for queue in dict.fromkeys(queues):
            while removed := int(self._run(PURGE, queue, 2000)):
                purged += removed
        return purged

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        self._run(PAUSE, list(queues), by)

    def resume(self, queues: Sequence[str]) -> None:
        self._run(RESUME, list(queues))

    def replay(self, ids: Sequence[str]) -> list[str]:
        return _texts(self._run(REPLAY, list(ids)))

    def discard(self, ids: Sequence[str]) -> list[str]:
        return _texts(self._run(DISCARD, list(ids)))

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        now, rows, leases = self._run(NODES)
        until = {leases[at]: float(leases[at + 1]) for at in range(0, len(leases), 2)}
        return [
            msgspec.structs.replace(_decode_node(rows[at + 1]), lease_left_seconds=until.get(rows[at], 0.0) - float(now))
            for at in range(0, len(rows), 2)
        ]

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        self._run(POST, list(addresses), _encode(letter), LETTER_SECONDS)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        token = self._prefix + b"bw:" + address.encode()
        while True:
            now, rows = self._run(COLLECT, address)
            horizon = float(now) - LETTER_SECONDS
            letters = [_decode_letter(body) for at, _, body in (row.partition(b" ") for row in rows) if float(at) >= horizon]
            left = deadline - time.monotonic()
            if letters or left <= 0:
                return letters
            self._take_token([token], min(left, NET_SECONDS))

    # -- one trip --------------------------------------------------------------------------------------------------

    def _arguments(self, arguments: Iterable[Any]) -> bytes:
        if self._own_clock:
            return _pack((self._clock.time(), self._clock.monotonic(), self._ttl_milliseconds, True, *arguments))
        return _pack((None, None, self._ttl_milliseconds, False, *arguments))

    def _script(self, text: str, arguments: int) -> _Script:
        script = self._scripts.get(text)
        if script is None:
            script = self._scripts[text] = _Script(text, (self._prefix, self._results), arguments)
        return script

    def _run(self, text: str, *arguments: Any) -> Any:
        """A script that may be repeated when its answer is lost."""
        script = self._script(text, 1)
        request = script.head + _bulk(self._arguments(arguments))
        return self._server.ask(lambda again: request, self._seconds, script)

    def _once(self, text: str, key: Any, seconds: float, *arguments: Any, quick: tuple[Any, ...] | None = None) -> Any:
        """A script that must not happen twice: a repeat bears the same pen and number, also when it is the caller who repeats. `key` says that it is one.

        With `quick`, the first try is of the script QUICK with these arguments.
        """
        script = self._script(text, 4)
        first = script if quick is None else self._script(QUICK, 4)
        start = first.head + _bulk(self._arguments(arguments if quick is None else quick))
        unsure = self._unsure.pop(key, None) if self._unsure else None
        if unsure is not None:
            pen = unsure[0]
        else:
            try:
                pen = self._pens.pop()
                pen.number += 1
            except IndexError:
                pen = _Pen()
        signature = pen.signature()

        def request(again: bool) -> bytes:
            if not again:
                return start + signature + b"$0\r\n\r\n"
            begin = start if quick is None else script.head + _bulk(self._arguments(arguments))
            return begin + signature + b"$1\r\n1\r\n"

        try:
            reply = self._server.ask(request, seconds, first, again=unsure is not None, repeat=script)
        except (_NodeLost, _Refused):
            # It has not happened, so the pen is free; a repeat that was refused is still one.
            if unsure is not None:
                self._unsure[key] = unsure
            else:
                self._pens.append(pen)
            raise
        except BaseException:
            self._forget_old_pens()
            self._unsure[key] = (pen, time.monotonic())
            raise
        self._pens.append(pen)
        return reply

    def _forget_old_pens(self) -> None:
        if len(self._unsure) > 100:
            horizon = time.monotonic() - PEN_SECONDS
            self._unsure = {key: unsure for key, unsure in list(self._unsure.items()) if unsure[1] > horizon}

    def _take_token(self, keys: list[bytes], seconds: float) -> bytes | None:
        seconds = max(0.001, seconds)
        request = _request(b"BZPOPMIN", *keys, b"%.3f" % seconds)
        reply = self._server.ask(lambda again: request, self._seconds, blocked_seconds=seconds)
        return None if reply is None else reply[1]

    def _settlement_rows(self, settlements: Sequence[Settlement]) -> tuple[list[Any], bool]:
        """As the script wants them, and whether they can take the fast way."""
        rows: list[Any] = []
        fast = bool(settlements)
        node = None
        for settlement in settlements:
            lease, verdict, record = settlement.lease, settlement.verdict, settlement.record
            record_row = _record_row(record) if record is not None else None
            if lease is None:
                fast = False
                holder: tuple[Any, Any, Any] = (None, 0, 0)
            else:
                holder = (lease.holder.node, lease.holder.process, lease.token)
                node = node or holder[0]
            message = settlement.message
            message_row = _row(message) if message is not None else None
            follow_ups = [_row(follow_up) for follow_up in settlement.follow_ups] if settlement.follow_ups else None
            if verdict is not Verdict.DONE:
                fast = False
                if verdict is Verdict.RETRY and message_row is None:
                    message_row = self._as_it_was(settlement.id)
            elif follow_ups or holder[0] != node:
                fast = False
            rows.append(
                (settlement.id, verdict.value, *holder, settlement.reason, settlement.delay_seconds, message_row, record_row, follow_ups)
            )
        return rows, fast and len({row[0] for row in rows}) == len(rows)

    def _as_it_was(self, id: str) -> Any:
        found = self._run(FIND, [id])[0]
        return _row(_decode_message(found[1])) if found is not None else None

    def _after_fork_in_child(self) -> None:
        self._pens = deque()
        self._unsure = {}
        self._server.after_fork_in_child()


# -- what goes in and out ----------------------------------------------------------------------------------------


class _Pen:
    """What a call signs with that must not happen twice. One call at a time writes with it."""

    __slots__ = ("name", "number")

    def __init__(self) -> None:
        self.name = os.urandom(9).hex().encode()
        self.number = 1

    def signature(self) -> bytes:
        number = b"%d" % self.number
        return b"$18\r\n%b\r\n$%d\r\n%b\r\n" % (self.name, len(number), number)


def _row(message: Message) -> tuple[str, str, int, float | None, float | None, str]:
    """A new message, as the scripts want it."""
    eta = message.eta
    return (
        message.id,
        message.queue,
        message.priority,
        message.delay_seconds,
        eta.timestamp() if eta is not None else None,
        _encode(message),
    )


def _record_row(record: Record) -> tuple[str, bool, str]:
    """The record as JSON, with the fields that Celery's clients expect to find whatever they hold."""
    body = _encode(record)
    missing = ""
    if '"result":' not in body:
        missing = ',"result":null'
    if record.traceback is None:
        missing += ',"traceback":null'
    if not record.children:
        missing += ',"children":[]'
    if record.date_done is None:
        missing += ',"date_done":null'
    return (record.task_id, record.status in READY_STATES, f"{body[:-1]}{missing}}}" if missing else body)


def _read_record(id: str, body: bytes) -> Record:
    """Also one that a Celery worker wrote, whose fields may be of other types."""
    try:
        return _decode_record(body)
    except msgspec.ValidationError:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    fields: dict[str, Any] = {}
    for name, raw in found.items():
        if name in ("result", "attempts") or name not in Record.__struct_fields__:
            continue
        value = msgspec.json.decode(raw)
        if name in ("name", "args", "kwargs", "worker", "queue", "root_id", "parent_id", "group_id", "traceback") and value is not None:
            value = value if isinstance(value, str) else repr(value)
        if value is not None:
            fields[name] = value
    fields["task_id"] = id
    record = msgspec.convert(fields, Record)
    return msgspec.structs.replace(record, result=msgspec.Raw(bytes(found["result"]))) if "result" in found else record


def _deliveries(reply: Any) -> list[Delivery]:
    ids = reply[2]
    if not ids:
        return []
    now = float(reply[0])
    revoked = set(reply[5]) if reply[5] else ()
    deliveries = []
    for id, meta, body in zip(ids, reply[3], reply[4], strict=True):
        queue, _, place, token, crashes, interruptions, node, process, revocation, _ = _unpack(meta)
        message, error = _decode(body)
        expires = message.expires if message is not None else None
        deliveries.append(
            Delivery(
                id=id.decode(),
                queue=queue,
                lease=Lease(Holder(node, process), token),
                message=message,
                crashes=crashes,
                interruptions=interruptions,
                waiting_since=int(place[:17]) / 1e6,
                expired=expires is not None and now > expires.timestamp(),
                revoked=bool(revocation) or id in revoked,
                raw_message=b"" if message is not None else body or b"",
                error=error,
            )
        )
    return deliveries


def _decode(body: bytes | None) -> tuple[Message | None, str]:
    try:
        return _decode_message(body or b""), ""
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"The stored message cannot be decoded: {error}"


def _waiting(id: str, meta: bytes, body: bytes | None, due: bytes, ahead: int | None = None) -> Waiting:
    queue, _, place, _, crashes, interruptions, node, process, _, _ = _unpack(meta)
    return Waiting(
        id=id,
        queue=queue,
        state="leased" if node else "scheduled" if due else "ready",
        message=_decode(body)[0],
        due_at=float(due) if due else None,
        waiting_since=int(place[:17]) / 1e6,
        ahead=ahead,
        node=node or None,
        process=process if node else None,
        crashes=crashes,
        interruptions=interruptions,
    )


def _dead(id: str, meta: bytes, body: bytes | None) -> Waiting:
    queue, _, place, _, crashes, interruptions, reason, died_at = _unpack(meta)
    return Waiting(
        id=id,
        queue=queue,
        state="dead",
        message=_decode(body)[0],
        waiting_since=int(place[:17]) / 1e6,
        crashes=crashes,
        interruptions=interruptions,
        reason=reason,
        died_at=float(died_at),
    )


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in values]


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _request(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join([_bulk(part) for part in parts])


# -- subscriptions -----------------------------------------------------------------------------------------------


class _Subscription:
    """A connection of our own while it lasts; it goes back to the others afterwards."""

    def __init__(self, server: _Server, channels: list[bytes], seconds: float) -> None:
        self._server = server
        self._channels = channels
        self._seconds = seconds
        self._closed = False
        self._link = self._begin()

    def fileno(self) -> int:
        return self._link.fileno()

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        asked_at: float | None = None
        while True:
            try:
                frames = self._link.drain()
                if any(frame[0] == b"message" for frame in frames if isinstance(frame, list)):
                    return True
                now = time.monotonic()
                if frames:
                    asked_at = None
                elif asked_at is not None and now > asked_at + self._seconds:
                    raise TimeoutError("no answer")
                if now >= deadline:
                    return False
                if (
                    not _readable(self._link.fileno(), min(deadline - now, PING_SECONDS))
                    and asked_at is None
                    and now + PING_SECONDS < deadline
                ):
                    self._link.send(_request(b"PING"), time.monotonic() + self._seconds)
                    asked_at = time.monotonic()
            except OSError:
                # What came meanwhile was not told: so the caller is to look.
                self._link.close()
                self._link = self._begin()
                return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        link = self._link
        if link.process != os.getpid():
            link.abandon()
            return
        try:
            # Its answers are read by whoever uses the connection next.
            link.leave(time.monotonic() + self._seconds)
        except OSError:
            link.close()
        else:
            self._server.give(link)

    def __del__(self) -> None:
        if not self.__dict__.get("_closed", True) and "_link" in self.__dict__:
            self._closed = True
            self._link.close()

    def _begin(self) -> _Link:
        server, deadline = self._server, time.monotonic() + self._seconds
        for tries in range(1, TRIES + 1):
            link = server.take(deadline)
            try:
                link.subscribe(self._channels, deadline)
            except OSError as error:
                link.close()
                trouble = server.failed(error)
                if tries == TRIES or time.monotonic() >= deadline:
                    raise trouble from error
            except BaseException:
                link.close()
                raise
            else:
                return link
        raise AssertionError("unreachable")


def _readable(fd: int, seconds: float) -> bool:
    if not hasattr(select, "poll"):  # eventlet takes it away
        return bool(select.select([fd], (), (), max(0.0, seconds))[0])
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


# -- connections -------------------------------------------------------------------------------------------------


class _NodeLost(Exception):
    """The script says that the node is not registered."""


class _Refused(EngineUnavailable):
    """Nothing was changed for certain: nothing was sent, or the server answered, and the answer is no."""


class _Link:
    """One connection, made and authenticated by redis-py. From there on we read it ourselves, each call with one deadline for all of it."""

    def __init__(self, connection: Any, address: tuple[Any, Any]) -> None:
        self.process = os.getpid()
        self.address = address
        self._connection = connection
        self._socket: Any = connection._sock
        self._reader = _new_reader()
        self._leaving = False

    def fileno(self) -> int:
        return int(self._socket.fileno()) if self._socket is not None else -1

    def ask(self, request: bytes, deadline: float) -> Any:
        self.send(request, deadline)
        if self._leaving:
            self._left(deadline)
        return self._read(deadline)

    def send(self, request: bytes, deadline: float) -> None:
        if self._socket is None:
            raise ConnectionError("the connection is closed")
        self._socket.settimeout(max(0.001, deadline - time.monotonic()))
        self._socket.sendall(request)

    def subscribe(self, channels: list[bytes], deadline: float) -> None:
        self.send(_request(b"SUBSCRIBE", *channels), deadline)
        if self._leaving:
            self._left(deadline)
        waiting = len(channels)
        while waiting:
            frame = self._read(deadline)
            if isinstance(frame, Exception):
                raise ConnectionError(str(frame))
            waiting -= frame[0] == b"subscribe"

    def leave(self, deadline: float) -> None:
        self.send(_request(b"UNSUBSCRIBE"), deadline)
        self._leaving = True

    def drain(self) -> list[Any]:
        """What has come, without waiting."""
        if self._socket is None:
            raise ConnectionError("the connection is closed")
        self._socket.settimeout(0.0)
        frames = []
        while True:
            while (frame := self._reader.gets()) is not False:
                frames.append(frame)
            try:
                chunk = self._socket.recv(CHUNK_BYTES)
            except (BlockingIOError, InterruptedError):
                return frames
            except OSError as error:
                if type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError"):
                    return frames
                raise
            if not chunk:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(chunk)

    def close(self) -> None:
        self._socket = None
        with suppress(Exception):
            self._connection.disconnect()

    def abandon(self) -> None:
        """In a child: the file is closed, and the server, which talks to the parent, is told nothing."""
        connected, self._socket = self._socket, None
        if connected is not None:
            with suppress(OSError):
                os.close(connected.detach())
        self._connection._sock = None

    def _left(self, deadline: float) -> None:
        """Reads what came until the server knew that we unsubscribed."""
        while True:
            frame = self._read(deadline)
            if isinstance(frame, list) and len(frame) == 3 and frame[0] == b"unsubscribe" and frame[2] == 0:
                self._leaving = False
                return

    def _read(self, deadline: float) -> Any:
        reader = self._reader
        reply = reader.gets()
        while reply is False:
            chunk = self._socket.recv(CHUNK_BYTES)
            if not chunk:
                raise ConnectionError("the server closed the connection")
            reader.feed(chunk)
            reply = reader.gets()
            if reply is False:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the answer did not end in time")
                self._socket.settimeout(left)
        return reply


class _Server:
    """Where the server is, the connections to it, and what is known of its health."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        self._idle: deque[_Link] = deque()
        self._links: WeakSet[_Link] = WeakSet()
        self._primary: tuple[Any, Any] | None = None
        self._known: list[tuple[Any, Any]] = list(place.addresses)
        self._failures = 0
        self._away_until = 0.0
        self._trouble = ""

    def ask(
        self,
        request: Callable[[bool], bytes],
        seconds: float,
        script: _Script | None = None,
        *,
        blocked_seconds: float = 0.0,
        again: bool = False,
        repeat: _Script | None = None,
    ) -> Any:
        """One request and its answer. What was sent on a connection that broke is sent again, marked, on another: then it is of the script `repeat`."""
        deadline = time.monotonic() + seconds
        tries = 0
        lost = False
        while True:
            try:
                link = self.take(deadline)
            except _Refused as refusal:
                raise EngineUnavailable(str(refusal)) if lost else refusal from None
            tries += 1
            try:
                reply = link.ask(request(again), deadline + blocked_seconds)
                if isinstance(reply, Exception) and script is not None and str(reply).startswith("NOSCRIPT"):
                    loaded = link.ask((repeat or script if again else script).load, deadline)
                    reply = loaded if isinstance(loaded, Exception) else link.ask(request(again), deadline)
            except OSError as error:
                link.close()
                last = isinstance(error, TimeoutError) or tries >= TRIES or time.monotonic() >= deadline
                # One that broke says little of the server; whether another can be made says more.
                trouble = self.failed(error, counts=last)
                if last:
                    raise trouble from error
                again = lost = True
                continue
            except BaseException:
                link.close()
                raise
            if not isinstance(reply, Exception):
                self._failures = 0
                self.give(link)
                return reply
            if not self._redirected(link, reply) or tries >= TRIES or time.monotonic() >= deadline:
                raise self._refusal(reply, lost)

    def take(self, deadline: float) -> _Link:
        """A connection for the caller alone. Raises EngineUnavailable: there is none to be had before the deadline."""
        if self._failures >= FAILURES:
            now = time.monotonic()
            if now < self._away_until:
                raise _Refused(f"{self._trouble} It failed {self._failures} times in a row and is tried again once a second.")
            self._away_until = now + AWAY_SECONDS
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return self._connect(deadline)
            if link.process == os.getpid():
                return link
            link.abandon()

    def give(self, link: _Link) -> None:
        if len(self._idle) < IDLE_LINKS:
            self._idle.append(link)
        else:
            link.close()

    def failed(self, error: BaseException, *, counts: bool = True) -> EngineUnavailable:
        """A connection broke, or none could be made: the others are as good as broken."""
        self._failures += counts
        self._primary = None
        self._trouble = self.place.sentence(error)
        if self._failures >= FAILURES:
            self._away_until = time.monotonic() + AWAY_SECONDS
        self.close()
        return EngineUnavailable(self._trouble)

    def close(self) -> None:
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                break

    def after_fork_in_child(self) -> None:
        self._idle = deque()
        for link in list(self._links):
            link.abandon()
        self._links = WeakSet()

    def _redirected(self, link: _Link, reply: Exception) -> bool:
        """True when another server is to be asked."""
        words = str(reply).split()
        code = words[0] if words else ""
        if code == "MOVED" and len(words) >= 3:
            link.close()
            self.close()
            host, _, port = words[2].rpartition(":")
            self._primary = (host or link.address[0], int(port))
            if self._primary not in self._known:
                self._known.append(self._primary)
            return True
        if (code in ("UNBLOCKED", "ASK", "TRYAGAIN") or _code(reply) == "READONLY") and (self.place.cluster or self.place.sentinels):
            link.close()
            self.close()
            self._primary = None
            time.sleep(0.02)
            return True
        if code in ("UNBLOCKED", "NOAUTH") or _code(reply) == "READONLY":
            link.close()
        else:
            self.give(link)
        return False

    def _refusal(self, reply: Exception, lost: bool) -> Exception:
        text = str(reply)
        if text.startswith("NODELOST"):
            return _NodeLost()
        sentence = self.place.refusal(_code(reply), text)
        return EngineUnavailable(sentence) if lost else _Refused(sentence)

    # -- connecting ------------------------------------------------------------------------------------------------

    def _connect(self, deadline: float) -> _Link:
        problem: BaseException | None = None
        for address in self._addresses(deadline):
            seconds = min(deadline - time.monotonic(), self.place.connect_seconds)
            if seconds <= 0:
                problem = problem or TimeoutError("no time was left to connect")
                break
            try:
                link = self._connect_to(address, seconds, self.place.connection_options)
            except (OSError, _RedisError) as error:
                code = _code(error)
                if code in ("NOAUTH", "WRONGPASS", "NOPERM", "LOADING", "MASTERDOWN") and not self.place.cluster:
                    self._failures = 0
                    raise _Refused(self.place.refusal(code, str(error))) from error
                problem = error
                continue
            if self.place.cluster and self._primary is None:
                primary = self._learn(link, deadline)
                if primary not in (None, address):
                    link.close()
                    return self._connect(deadline)
            return link
        raise _Refused(str(self.failed(problem or ConnectionError("no server is known")))) from problem

    def _connect_to(self, address: tuple[Any, Any], seconds: float, options: dict[str, Any], kind: Any = None) -> _Link:
        place = self.place
        where: dict[str, Any]
        if address[1] is None:
            connection_class, where = _connection.UnixDomainSocketConnection, {"path": address[0]}
        else:
            connection_class, where = kind or place.connection_class, {"host": address[0], "port": address[1]}
        # A name may take longer to resolve than anybody wants to wait, and nothing can interrupt that: so a thread does it, and may be left behind.
        named = address[1] is not None and not _is_number(address[0])
        step_seconds = seconds if named else max(0.01, seconds / 2)
        connection = connection_class(
            **where,
            **options,
            socket_timeout=step_seconds,
            socket_connect_timeout=step_seconds,
            protocol=2,
            retry=_retry.Retry(_backoff.NoBackoff(), 0),
        )
        if named:
            _in_time(connection, seconds)
        else:
            connection.connect()
        link = _Link(connection, address)
        self._links.add(link)
        return link

    def _addresses(self, deadline: float) -> list[tuple[Any, Any]]:
        if self.place.sentinels:
            return [self._ask_sentinels(deadline)]
        if self._primary is not None:
            return [self._primary, *(address for address in self._known if address != self._primary)]
        return list(self._known)

    def _ask_sentinels(self, deadline: float) -> tuple[Any, Any]:
        """Where the primary is now."""
        problem: BaseException | None = None
        sentinels = self.place.sentinels
        for number, address in enumerate(sentinels):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                link = self._connect_to(address, left / (len(sentinels) - number), self.place.sentinel_options, kind=_connection.Connection)
                try:
                    answer = link.ask(_request(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self.place.master_name.encode()), deadline)
                finally:
                    link.close()
            except (OSError, _RedisError) as error:
                problem = error
                continue
            if isinstance(answer, list):
                return (answer[0].decode(), int(answer[1]))
            problem = ConnectionError(
                f"the sentinel {address[0]}:{address[1]} knows no primary named {self.place.master_name!r} ({answer})"
            )
        raise _Refused(str(self.failed(problem or TimeoutError("no sentinel answered"))))

    def _learn(self, link: _Link, deadline: float) -> tuple[Any, Any] | None:
        """Which server of the Cluster holds our keys, and which others there are."""
        answer = link.ask(_request(b"CLUSTER", b"SLOTS"), deadline)
        if not isinstance(answer, list):
            return None  # we may not ask; then the server will say MOVED
        slot = _crc.key_slot(self.place.key_prefix.encode())
        known = []
        for first, last, *nodes in answer:
            for number, node in enumerate(nodes):
                address = ((node[0] or b"").decode() or link.address[0], int(node[1]))
                known.append(address)
                if number == 0 and first <= slot <= last:
                    self._primary = address
        self._known = list(dict.fromkeys([*self.place.addresses, *known]))
        return self._primary


class _Place:
    """What the URL and the options say."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        scheme, _, rest = url.partition("://")
        self.url = mask_url(url)
        self.cluster = scheme in ("redis+cluster", "rediss+cluster")
        self.sentinels: list[tuple[Any, Any]] = []
        if scheme in ("redis+socket", "unix"):
            place, _, query = rest.partition("?")
            given: dict[str, Any] = dict(_connection.parse_url(f"unix://{place}?{query.replace('virtual_host=', 'db=')}"))
            self.addresses: list[tuple[Any, Any]] = [(given.pop("path", "/run/redis/redis-server.sock"), None)]
        else:
            # Celery joins whole URLs by ";", others join the hosts by ",".
            first, *others = rest.split(";")
            authority = re.split("[/?]", first, maxsplit=1)[0]
            path = first[len(authority) :]
            login, at, hosts = authority.rpartition("@")
            names = [*hosts.split(","), *(re.split("[/?]", other.rpartition("://")[2])[0].rpartition("@")[2] for other in others)]
            port = 26379 if scheme == "sentinel" else 6379
            try:
                given = dict(_connection.parse_url(f"redis://{login}{at}localhost{path}"))
                self.addresses = [_address(name, port) for name in names]
            except ValueError as error:
                raise ImproperlyConfigured(f"The URL {self.url} is wrong: {error}. Write redis://user:password@host:6379/0.") from None
            given.pop("host", None)
            given.pop("port", None)
            if scheme == "sentinel":
                self.sentinels, self.addresses = self.addresses, []
        given.pop("connection_class", None)
        given.update(options)
        tls = scheme in ("rediss", "rediss+cluster") or _truth(given.pop("ssl", False))
        self.connection_class = _connection.SSLConnection if tls else _connection.Connection
        for name in MEANINGLESS:
            given.pop(name, None)
        unknown = sorted(given.keys() - {*OPTIONS, *CONNECTION_OPTIONS})
        if unknown:
            raise ImproperlyConfigured(
                f"The Redis engine has no option {', '.join(unknown)}. It has {', '.join([*OPTIONS, *CONNECTION_OPTIONS])}."
            )
        self.cluster = self.cluster or _truth(given.pop("cluster", False))
        self.master_name = str(given.pop("master_name", None) or "mymaster")
        self.timeout_seconds = _seconds(given, "socket_timeout", 5.0)
        self.connect_seconds = _seconds(given, "socket_connect_timeout", min(5.0, self.timeout_seconds))
        sentinel_options = dict(given.pop("sentinel_kwargs", None) or {})
        self.sentinel_options = {name: sentinel_options[name] for name in sentinel_options if name in CONNECTION_OPTIONS}
        prefix = str(given.pop("key_prefix", None) or given.get("global_keyprefix") or "")
        given.pop("global_keyprefix", None)
        if prefix and prefix[-1] not in ":_-.":
            prefix += "_"  # as Celery does
        if self.cluster and not re.search(r"\{[^}]+\}", prefix):
            prefix = "{" + (prefix.rstrip(":_-.") or "celeriac") + "}:"
        self.key_prefix = prefix
        if isinstance(given.get("ssl_cert_reqs"), str):
            given["ssl_cert_reqs"] = given["ssl_cert_reqs"].removeprefix("CERT_").lower()
        if not tls:
            given = {name: value for name, value in given.items() if not name.startswith("ssl_")}
        self.connection_options: dict[str, Any] = given

    def sentence(self, error: BaseException) -> str:
        """Why there is no connection, and what to do."""
        text = str(error).rstrip(". ") or type(error).__name__
        lowered = text.lower()
        start = f"Redis at {self.url} cannot be reached: {text}."
        if "ssl" in lowered or "certificate" in lowered or "tls" in lowered:
            return f"{start} The TLS handshake failed: check that the port speaks TLS (rediss://), and ssl_ca_certs, ssl_certfile and ssl_cert_reqs."
        if isinstance(error, TimeoutError) or "timed out" in lowered or "timeout" in lowered:
            return f"{start} It did not answer in time: is it overloaded, stopped, or behind a firewall? Nothing is known to have been changed."
        if "name or service" in lowered or "resolve" in lowered or "nodename" in lowered or "name resolution" in lowered:
            return f"{start} Check the host's name in the URL, and the DNS."
        if "refused" in lowered or "no such file" in lowered:
            return f"{start} Start the server, or correct the URL."
        return f"{start} Check that the server runs and that the network lets us through."

    def refusal(self, code: str, text: str) -> str:
        """Why the server said no, and what to do."""
        advice = {
            "NOAUTH": "It wants a password: write redis://user:password@host:port/db.",
            "WRONGPASS": "The user name or the password in the URL is wrong.",
            "NOPERM": f"Its ACL forbids that. The user needs ~{self.key_prefix or '*'}{'*' if self.key_prefix else ''}, "
            f"&{self.key_prefix or '*'}{'*' if self.key_prefix else ''} and the categories @read @write @scripting @pubsub @connection @blocking, and the command time.",
            "LOADING": "It is loading its data after a start; try again in a moment.",
            "OOM": "It has reached maxmemory, so it stores nothing more. Raise maxmemory, or find out why tasks pile up. Nothing was changed.",
            "READONLY": "It is a replica: connect to the primary, or use sentinel:// or redis+cluster://, which find it. Nothing was changed.",
            "MISCONF": "It cannot save to its disk, so it refuses to write. Make room on the disk, and look at its log. Nothing was changed.",
            "NOREPLICAS": "Too few replicas are connected (min-replicas-to-write). Nothing was changed.",
            "MASTERDOWN": "It is a replica without its primary. Wait for the failover, or look at the primary.",
            "CLUSTERDOWN": "Some of the Cluster's slots have no server. Wait for the failover, or look at its nodes.",
            "BUSY": "A script of somebody else keeps it busy.",
            "MOVED": "It is part of a Cluster: write redis+cluster://, or set the option cluster.",
            "CROSSSLOT": "It is part of a Cluster: write redis+cluster://, or set the option cluster.",
            "WRONGTYPE": "Another program uses our keys: give this one a key_prefix of its own.",
        }.get(code, "Is it Redis 6.2 or newer, or Valkey?")
        return f"Redis at {self.url} refused: {text.rstrip('. ')}. {advice}"


_CODES = re.compile(
    r"\b(NOAUTH|WRONGPASS|NOPERM|LOADING|OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|BUSY|MOVED|CROSSSLOT|WRONGTYPE)\b"
)


def _code(error: BaseException) -> str:
    """The word that says what the server means; from within a script it comes in the middle of a sentence."""
    text = str(error)
    found = _CODES.search(text)
    if found:
        return found[1]
    if "user executing the script can't" in text:
        return "NOPERM"
    if "unauthenticated" in text:
        return "NOAUTH"
    name = type(error).__name__
    if name == "AuthenticationError" or "invalid username-password pair" in text or "invalid password" in text:
        return "WRONGPASS"
    return {"BusyLoadingError": "LOADING", "AuthenticationWrongNumberOfArgsError": "WRONGPASS", "NoPermissionError": "NOPERM"}.get(name, "")


def _in_time(connection: Any, seconds: float) -> None:
    """Connects, for at most so long."""
    outcome: list[BaseException] = []
    given_up = threading.Event()

    def connect() -> None:
        try:
            connection.connect()
        except BaseException as error:
            outcome.append(error)
        if given_up.is_set():
            with suppress(Exception):
                connection.disconnect()

    thread = threading.Thread(target=connect, name="celeriac-connect", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        given_up.set()
        raise TimeoutError(f"resolving the name and connecting took longer than {seconds:.3g} s")
    if outcome:
        raise outcome[0]


def _is_number(host: str) -> bool:
    """An address that needs no resolver."""
    if host == "localhost":
        return True
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


def _address(text: str, port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or port)
    host, _, given = text.partition(":")
    return unquote(host) or "localhost", int(given or port)


def _truth(value: Any) -> bool:
    return str(value).lower() not in ("", "0", "no", "false", "off", "none")


def _seconds(given: dict[str, Any], name: str, default: float) -> float:
    value = given.pop(name, None)
    try:
        seconds = default if value is None else float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise ImproperlyConfigured(f"The Redis engine's option {name} is {value!r}; it must be a number of seconds above 0.")
    return seconds


# -- reading answers ---------------------------------------------------------------------------------------------


class _PlainReader:
    """hiredis.Reader, for where there is no hiredis."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> None:
        self._buffer += chunk

    def gets(self) -> Any:
        try:
            value, end = self._parse(0)
        except IndexError:
            return False
        del self._buffer[:end]
        return value

    def _parse(self, at: int) -> tuple[Any, int]:
        line_end = self._buffer.find(b"\r\n", at)
        if line_end < 0:
            raise IndexError
        kind, line, end = self._buffer[at], bytes(self._buffer[at + 1 : line_end]), line_end + 2
        match chr(kind):
            case "+":
                return line, end
            case "-":
                return ServerError(line.decode(errors="replace")), end
            case ":":
                return int(line), end
            case "$":
                length = int(line)
                if length < 0:
                    return None, end
                if len(self._buffer) < end + length + 2:
                    raise IndexError
                return bytes(self._buffer[end : end + length]), end + length + 2
            case "*":
                if int(line) < 0:
                    return None, end
                items = []
                for _ in range(int(line)):
                    item, end = self._parse(end)
                    items.append(item)
                return items, end
        raise ConnectionError("the server does not speak Redis's protocol")


class ServerError(Exception):
    """What the server said instead of an answer."""


def _new_reader() -> Any:
    try:
        import hiredis
    except ImportError:
        return _PlainReader()
    return hiredis.Reader(protocolError=_protocol_error, replyError=ServerError)


def _protocol_error(text: str) -> Exception:
    return ConnectionError(f"the server does not speak Redis's protocol: {text}")


# -- forks -------------------------------------------------------------------------------------------------------

_engines: WeakSet[RedisEngine] = WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

if TYPE_CHECKING:
    _complete: type[Engine] = RedisEngine
