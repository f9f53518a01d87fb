-- Where a room stands; begins it if there is none, or if another memory gave out its offsets.
-- KEYS: meta, stream    ARGV: fence, epoch if a new one begins, meta ttl ms    Answers epoch and offset.
local m = redis.call('HMGET', KEYS[1], 'g', 'e', 's')
if m[1] ~= ARGV[1] or not m[2] then
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'g', ARGV[1], 'e', ARGV[2], 's', 0)
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return ARGV[2] .. '0'
end
if redis.call('PTTL', KEYS[1]) < ARGV[3] / 2 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return m[2] .. (m[3] or '0')
