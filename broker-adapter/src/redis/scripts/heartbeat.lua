-- Records a heartbeat, and gives the caller the dead owners whose members it is to remove. All times are Redis's own,
-- so the nodes' clocks need not agree.
-- KEYS: nodes (sorted set: owner -> last heartbeat; x<owner>: being swept; s<owner>: swept)
-- ARGV: owner, dead after ms, "new" for an owner's first heartbeat or "known", owners that the caller has swept...
-- Returns "alive", "unknown" or "swept", as the owner was known; how many owners live; then the owners to sweep.
local nodes, me = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- Swept owners stay known for an hour, so that a node which was swept while it lived can learn of it.
for i = 4, #ARGV do
  redis.call('ZREM', nodes, 'x' .. ARGV[i])
  redis.call('ZADD', nodes, now + 3600000, 's' .. ARGV[i])
end

-- No heartbeat at all for half of the time: Redis itself was away (a failover, a stall), and no node is to blame. All
-- owners start anew.
local dead_after = tonumber(ARGV[2])
local last = redis.call('ZREVRANGEBYSCORE', nodes, now, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
if last[2] and now - last[2] > dead_after / 2 then
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', now)) do
    if string.sub(member, 1, 1) ~= 's' then redis.call('ZADD', nodes, now, member) end
  end
end

-- Record the heartbeat. A known owner that Redis has lost stays unknown: if this reply is lost, the next one says so
-- again. Its node comes back under a new owner.
local reply = { 'alive' }
if ARGV[3] == 'new' or redis.call('ZSCORE', nodes, me) then
  redis.call('ZADD', nodes, now, me)
else
  local swept = redis.call('ZSCORE', nodes, 'x' .. me) or redis.call('ZSCORE', nodes, 's' .. me)
  reply[1] = swept and 'swept' or 'unknown'
end

-- Claim dead owners for the caller. A claim is an entry with a time too: if the caller dies, the claim expires and
-- another node claims the owner. Expired "s" entries are only removed.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', now - dead_after, 'LIMIT', 0, 16)) do
  redis.call('ZREM', nodes, member)
  local kind = string.sub(member, 1, 1)
  if kind ~= 's' then
    local dead = kind == 'x' and string.sub(member, 2) or member
    redis.call('ZADD', nodes, now, 'x' .. dead)
    reply[#reply + 1] = dead
  end
end
table.insert(reply, 2, tostring(#redis.call('ZRANGEBYSCORE', nodes, now - dead_after, now)))
return reply
