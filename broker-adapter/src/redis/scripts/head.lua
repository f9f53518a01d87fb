-- Returns a room's head. Begins a new epoch if the room is unknown, or if its offsets are of another fence.
-- KEYS: meta, stream
-- ARGV: fence, epoch for a new beginning, meta ttl ms
-- Returns the epoch, then the offset.
local m = redis.call('HMGET', KEYS[1], 'g', 'e', 's')
if m[1] ~= ARGV[1] or not m[2] then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'g', ARGV[1], 'e', ARGV[2], 's', 0)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return ARGV[2] .. '0'
end
-- Renewed once per half of the ttl, not with every join. A Redis that takes no writes at present can still be read.
if redis.call('PTTL', KEYS[1]) < ARGV[3] / 2 then redis.pcall('PEXPIRE', KEYS[1], ARGV[3]) end
return m[2] .. (m[3] or '0')
