"""What the Redis engine has its server do: where things lie, and one script for each verb. Redis runs a script whole and alone, so each is one step.

KEYS: what our names begin with; what the names of results begin with.
ARGV: the verb's arguments; and for the verbs that must not happen twice a pen, its number, and "1" when it may be a repeat.

body    id → the message                                 nodes    node → its registration, JSON
meta    id → {queue, priority, place, token, crashes,    leases   node, by when its lease runs out
        interruptions, node, process, revocation,        holders  nodes that may hold something
        number of its reservation}, of waiting ones      l:node   the same as meta, of those that the node holds
r:queue place..id, by -priority: the ready ones
s:queue id, by when it is due                            revokes  id, by until when it is remembered
d:queue id, in the order of death                        paused   queue → who paused it
dead    id → meta, reason, time                          queues   names of queues that may hold something
deadbody id → the message                                w:queue  "!" something is ready, "~" something comes due earlier than was known
b:, bw:address  letters, and their token                 p:, x:pen  what a pen did last

first   does not exist. A script whose first write needs no memory may go on when the server has none left: so what is there is still worked off, and leases
        are renewed, while new tasks are refused.

A place is a moment in microseconds and a number, both of fixed width: so places compare as text, over all queues.
"""

from __future__ import annotations

PEN_SECONDS = 60
"""How long a repeat is known for one."""
QUICK_LIMIT = 500
"""With how many messages QUICK may be asked: Lua can hand over some thousand values to a command."""

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
