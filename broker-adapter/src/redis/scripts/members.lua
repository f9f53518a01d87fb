-- What the scripts about members share; it stands before each of them. A room's members are in two hashes: `sessions`
-- (session -> owner, announce flag, presence payload) and `users` (u<user> -> sessions of the user; U -> users; v -> version).
-- A payload is: user bytes u16 (0xFFFF: anonymous), user, info.

local function owner_of(entry) return string.sub(entry, 1, 8) end
local function payload_of(entry) return string.sub(entry, 10) end

-- The field in which the sessions of the payload's user are counted; nil for an anonymous session.
local function user_of(payload)
  local len = #payload < 2 and 65535 or struct.unpack('>H', payload)
  if len == 65535 then return nil end
  return 'u' .. string.sub(payload, 3, 2 + len)
end

-- Adds to a number, and returns the sum. A number that cannot be read begins anew.
local function add(users, field, by, first)
  local sum = redis.pcall('HINCRBY', users, field, by)
  if type(sum) == 'number' then return sum end
  if not string.find(sum.err, 'integer') and not string.find(sum.err, 'overflow') then error(sum) end
  redis.call('HSET', users, field, first)
  return tonumber(first)
end

-- Counts a session in (1) or out (-1). Returns the version of the change if it is the first or last session of a user.
local function count(users, payload, by, first_version)
  local user, least = user_of(payload), math.max(by, 0)
  if user then
    local sessions = add(users, user, by, least)
    if sessions <= 0 then redis.pcall('HDEL', users, user) end
    if sessions > least then return nil end
  end
  -- Fewer than none: some were never counted.
  if add(users, 'U', by, least) < 0 then redis.call('HSET', users, 'U', 0) end
  redis.call('HSETNX', users, 'v', first_version)
  return add(users, 'v', 1, first_version)
end

-- Counts a session in or out, and writes or removes it by the command that follows. If Redis refuses one of the two,
-- neither is left: it keeps what a script wrote before it was refused.
local function change(users, payload, by, first_version, ...)
  local command = { ... }
  local is_done, version = pcall(function()
    local version = count(users, payload, by, first_version)
    redis.call(unpack(command))
    return version
  end)
  if is_done then return version end
  pcall(count, users, payload, -by, first_version)
  error({ err = version })
end

-- Sends the event of a change of users: `head` and `tail` are the envelope around the version. Without a head nothing is
-- sent. An event that Redis refuses to send is one that is lost on the way: the next version shows it to the members.
local function announce(version, channel, head, tail)
  if version and head then
    redis.pcall('PUBLISH', channel, head .. string.rep('\0', 8) .. struct.pack('>I8', version) .. tail)
  end
end

-- Removes a session that has this entry. The event is for the last session of a user, if the entry says that it is
-- announced.
local function remove(sessions, users, session, entry, first_version, channel, head, tail)
  local payload = payload_of(entry)
  local version = change(users, payload, -1, first_version, 'HDEL', sessions, session)
  if string.sub(entry, 9, 9) == '1' then announce(version, channel, head, tail .. payload) end
end

-- If a room has no session (more): its version is kept for an hour, since clients may still compare with it.
local function forget_if_empty(sessions, users, rooms, room)
  if redis.call('EXISTS', sessions) == 0 then
    redis.call('ZREM', rooms, room)
    redis.call('PEXPIRE', users, 3600000)
  end
end

-- Redis's own time in ms, so that the nodes' clocks need not agree.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

