-- A node says that it lives, and takes on dead ones. Times are Redis's own, so clocks need not agree.
-- KEYS: nodes (sorted set: owner -> last heartbeat; x<owner>: being swept; s<owner>: swept)
-- ARGV: owner, dead after ms, "new" for an owner's first words, owners that have been swept...
-- Answers how the owner was known ("alive", "unknown", "swept"), then the owners to sweep. One that is not known any
-- more stays unknown until it comes back under a new name, so that a lost answer is no lost news. Of several nodes
-- that see a dead one the first gets it; if that one dies too, the claim dies like a node.
-- When nobody was heard for half of that time Redis was away (a failover, a stall), and nobody is to blame: all get
-- their time anew.
local nodes, me = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 4, #ARGV do
  redis.call('ZREM', nodes, 'x' .. ARGV[i])
  redis.call('ZADD', nodes, now + 3600000, 's' .. ARGV[i])
end
local dead_after = tonumber(ARGV[2])
local last = redis.call('ZREVRANGEBYSCORE', nodes, now, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
if last[2] and now - last[2] > dead_after / 2 then
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', now)) do
    if string.sub(member, 1, 1) ~= 's' then redis.call('ZADD', nodes, now, member) end
  end
end
local answer = { 'alive' }
if ARGV[3] == 'new' or redis.call('ZSCORE', nodes, me) then
  redis.call('ZADD', nodes, now, me)
else
  local swept = redis.call('ZSCORE', nodes, 'x' .. me) or redis.call('ZSCORE', nodes, 's' .. me)
  answer[1] = swept and 'swept' or 'unknown'
end
for _, member in ipairs(redis.call('ZRANGEBYSCORE', nodes, '-inf', now - dead_after, 'LIMIT', 0, 16)) do
  redis.call('ZREM', nodes, member)
  local kind = string.sub(member, 1, 1)
  if kind ~= 's' then
    local dead = kind == 'x' and string.sub(member, 2) or member
    redis.call('ZADD', nodes, now, 'x' .. dead)
    answer[#answer + 1] = dead
  end
end
return answer
