-- Records that a session enters or leaves a room, and sends members an event if it is a user's first or last session.
-- KEYS: sessions, users, rooms of the partition, the owner's members in the partition
-- ARGV: enter|leave, session, owner (8 bytes), presence payload, announce the leave one day (0|1), announce now (0|1),
--       channel, head of joined, head of left, envelope tail, room, first version, lease ms (0: until it leaves)
-- Returns 1 if the session was not in the room before, or has left it now; else 0.
-- Only the owner of an entry removes it: if another owner has taken the session over, the session stays.
local sessions, users, rooms, own = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session, owner, channel, tail, room, first_version = ARGV[2], ARGV[3], ARGV[7], ARGV[10], ARGV[11], ARGV[12]
local joined, left = nil, nil
if ARGV[6] == '1' then joined, left = ARGV[8], ARGV[9] end

local entry = redis.call('HGET', sessions, session)

if ARGV[1] == 'leave' then
  local is_own = entry and owner_of(entry) == owner
  if is_own then remove(sessions, users, session, entry, first_version, channel, left, tail) end
  forget_if_empty(sessions, users, rooms, room)
  -- Last, so that a member at which the script fails is tried again.
  redis.call('ZREM', own, session .. room)
  return is_own and 1 or 0
end

-- The owner's list says until when the session stays at most: for ever (0), or until its lease ends. A shorter lease
-- does not shorten a longer one. First, so that the sweep finds whatever of this script is done.
local lease, ends = tonumber(ARGV[13]), 0
if lease > 0 then
  ends = math.max(now_ms() + lease, tonumber(redis.call('ZSCORE', own, session .. room) or 0))
end
redis.call('ZADD', own, ends, session .. room)

-- The session has changed its user: the old user's session leaves first.
local payload = ARGV[4]
if entry and user_of(payload_of(entry)) ~= user_of(payload) then
  remove(sessions, users, session, entry, first_version, channel, ARGV[9], tail)
  entry = false
end

-- The session is in the room already: its info is replaced, and its owner may be another one now. The former owner's
-- list still has it, and is put right when that owner's members are swept.
local new_entry = owner .. ARGV[5] .. payload
if entry then
  redis.call('HSET', sessions, session, new_entry)
  return 0
end

-- The first session of the room. All of this may be done without the session: nobody sees it before.
if redis.call('HLEN', sessions) == 0 then
  if (redis.call('HGET', users, 'U') or '0') ~= '0' then
    -- Redis has evicted the sessions but not their counts: start counting anew, from the last version.
    local version = redis.call('HGET', users, 'v')
    redis.call('DEL', users)
    redis.call('HSET', users, 'v', version or first_version)
  end
  redis.call('PERSIST', users)
  redis.call('ZADD', rooms, 0, room)
end

local version = change(users, payload, 1, first_version, 'HSET', sessions, session, new_entry)
announce(version, channel, joined, tail .. payload)
return 1
