-- Writes a job's new record, if the job is still as it was when the record was made. ARGV: id, the version it was made
-- from, its own version, now, sender, record, state, class, turn ('front': before all others), not_before, late, lease,
-- started, finished, event, counter, waited, ran, flags, room, preview's type, preview, artifacts, their bytes,
-- milliseconds that workers had it, how many jobs of its owner may run ('' for any number),
-- whether its end is to be told, until when a call is held that this ends ('' for none), when it is due again ('' never).
-- Flags: h not while the queue is held, w the answer has the request, x the preview goes, n not a matter of the queue,
-- s nobody is told.
local id, from, version, now, sender = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local record, state, class, turn = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local event, counter, waited, ran, flags, room = ARGV[15], ARGV[16], ARGV[17], ARGV[18], ARGV[19], ARGV[20]
local key = Q .. 'job:' .. id

local function has(flag) return string.find(flags, flag, 1, true) end

local function saved()
    if has('w') then
        local request = redis.call('HMGET', key, 'q', 'h')
        return { 'ok', request[1], request[2] or '' }
    end
    return { 'ok' }
end

local is = redis.call('HMGET', key, 'v', 's', 'p', 'n', 't', 'o', 'a', 'r', 'h')
local old = { version = is[1], state = is[2], class = is[3], seq = is[4], turn = is[5], owner = is[6] }
if not old.version then return { 'none' } end
-- This very write, whose answer was lost on its way.
if old.version == version then return saved() end
if old.version ~= from then return { 'stale', is[1], is[4], is[5], is[8], is[9] or '' } end
if ARGV[28] ~= '' then
    -- Somebody else has the call meanwhile, or there is another end.
    local held = redis.call('ZSCORE', Q .. 'calls', id)
    if not held or tonumber(held) ~= tonumber(ARGV[28]) then return { 'none' } end
end
if has('h') and redis.call('HGET', Q .. 'meta', 'held') == '1' then return { 'held' } end
if ARGV[26] ~= '' and old.owner then
    local runs = of_owner(old.owner, '2', '3')
    if runs >= tonumber(ARGV[26]) then return { 'busy', int(runs) } end
end
if room ~= '' then
    local waits = waiting()
    if waits + 1 > tonumber(room) then return full(waits) end
end

if turn == '' then
    turn = old.turn
elseif turn == 'front' then
    local first = redis.call('ZRANGE', ready(old.class), 0, 0, 'WITHSCORES')
    turn = int(math.min(tonumber(first[2] or 0), 0) - 1)
end
local at = {
    turn = turn, submitted = is[7], not_before = ARGV[10], late = ARGV[11], lease = ARGV[12], started = ARGV[13],
    finished = ARGV[14],
}
if leased(old.state) and leased(state) then
    redis.call('ZADD', Q .. 'leases', at.lease, id)
else
    leave(id, old.state, old.class, old.seq)
    enter(id, state, class, old.seq, at)
end
if old.state ~= state or old.class ~= class then
    tally(old.state, old.class, -1)
    tally(state, class, 1)
end
if old.state ~= state then
    list('ZREM', id, old.state, old.owner)
    list('ZADD', id, state, old.owner, old.seq)
end
redis.call('HSET', key, 'v', version, 'r', record, 's', state, 'p', class, 't', turn)
if event ~= '' then log(id, event, now) end
if counter ~= '' then count(now, counter, waited, ran) end
if counter == 'started' then
    if old.owner then redis.call('ZADD', Q .. 'served', now, old.owner) end
elseif counter ~= '' then
    charge(old.owner, counter, 1)
    charge(old.owner, 'worked_ms', ARGV[25])
end
if has('x') then
    redis.call('DEL', Q .. 'preview:' .. id)
elseif ARGV[21] ~= '' then
    redis.call('HSET', Q .. 'preview:' .. id, 'type', ARGV[21], 'content', ARGV[22])
end
if ARGV[27] == '1' then
    redis.call('ZADD', Q .. 'calls', now, id)
    redis.call('HDEL', Q .. 'call_tries', id)
end
if ARGV[28] ~= '' then
    if ARGV[29] ~= '' then
        redis.call('ZADD', Q .. 'calls', ARGV[29], id)
    else
        redis.call('ZREM', Q .. 'calls', id)
        redis.call('HDEL', Q .. 'call_tries', id)
    end
end
if ARGV[23] ~= '' then
    local files = 0
    for artifact in string.gmatch(ARGV[23], '%S+') do
        redis.call('HSET', Q .. 'artifacts', artifact, id)
        files = files + 1
    end
    charge(old.owner, 'artifacts', files)
    redis.call('HSET', key, 'f', ARGV[23], 'b', ARGV[24])
    redis.call('HINCRBY', Q .. 'meta', 'artifacts', files)
    redis.call('HINCRBY', Q .. 'meta', 'artifact_bytes', ARGV[24])
end
if not has('s') then tell(sender, has('n') and 'news' or 'queue') end
return saved()
