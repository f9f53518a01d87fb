-- Records a heartbeat, and tells the one node that sweeps which owners are dead. All times are Redis's own, so the
-- nodes' clocks need not agree.
-- KEYS: nodes (sorted set: owner -> last heartbeat; x<owner>: dead; s<owner>: swept), sweeper
-- ARGV: owner, dead after ms, "new" for an owner's first heartbeat or "known", node, claim ms, owners that the caller
--       has swept...
-- Returns "alive", "unknown" or "swept", as the owner was known; how many owners live; and if the caller is the node that
-- sweeps: in how many ms the next owner may be dead; then the dead owners.
local nodes, sweeper, me = KEYS[1], KEYS[2], ARGV[1]
local now = now_ms()

-- Swept owners stay known for an hour, so that a node which was swept while it lived can learn of it.
for i = 6, #ARGV do
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
local known = 'alive'
if ARGV[3] == 'new' or redis.call('ZSCORE', nodes, me) then
  redis.call('ZADD', nodes, now, me)
else
  local swept = redis.call('ZSCORE', nodes, 'x' .. me) or redis.call('ZSCORE', nodes, 's' .. me)
  known = swept and 'swept' or 'unknown'
end

-- Owners that are dead now wait for the sweeper, without an end. Expired "s" entries are only removed.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', now - dead_after, 'LIMIT', 0, 64)) do
  redis.call('ZREM', nodes, member)
  if string.sub(member, 1, 1) ~= 's' then redis.call('ZADD', nodes, 'inf', 'x' .. member) end
end
local living = redis.call('ZRANGEBYSCORE', nodes, now - dead_after, now, 'WITHSCORES')
local reply = { known, tostring(#living / 2) }

-- One node sweeps. Each of its heartbeats renews its claim; if none comes, the claim expires and another node has it.
local holder = redis.call('GET', sweeper)
if holder and holder ~= ARGV[4] then return reply end
redis.call('SET', sweeper, ARGV[4], 'PX', ARGV[5])
reply[3] = tostring(math.floor((living[2] or now) + dead_after - now))
for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, 'inf', 'inf', 'LIMIT', 0, 16)) do
  reply[#reply + 1] = string.sub(member, 2)
end
return reply
