-- What all scripts share. KEYS[1] is the beginning of every key, with the hash tag in it, so that all are in one slot.
local Q = KEYS[1]

-- A number as text: Lua would write large ones with an exponent.
local function int(number) return string.format('%.0f', number) end

-- A job's seat in an ordered set: jobs of one score sit in the order of arrival.
local function seat(seq, id) return string.format('%016.0f', tonumber(seq)) .. ':' .. id end

-- The id of a seat.
local function sitter(seat) return string.sub(seat, 18) end

local function log(id, what, now)
    local number = int(redis.call('HINCRBY', Q .. 'meta', 'events', 1))
    redis.call('XADD', Q .. 'events', number .. '-0', 'job', id, 'at', now, 'what', what)
    if id ~= '' then redis.call('XADD', Q .. 'log:' .. id, number .. '-0', 'at', now, 'what', what) end
end

-- Adds to the numbers of a minute. They go by themselves after a day.
local function count(now, column, waited, ran)
    local key = Q .. 'minute:' .. int(math.floor(tonumber(now) / 60000))
    redis.call('HINCRBY', key, column, 1)
    if waited ~= '0' then redis.call('HINCRBY', key, 'waited_ms', waited) end
    if ran ~= '0' then redis.call('HINCRBY', key, 'ran_ms', ran) end
    if redis.call('TTL', key) == -1 then redis.call('EXPIRE', key, 90000) end
end

-- States: 0 queued, 1 paused, 2 running, 3 parked, 4 done, 5 failed, 6 cancelled. Classes: 0 urgent, 1 normal, 2 batch.
local CLASSES = { ['0'] = 'urgent', ['1'] = 'normal', ['2'] = 'batch' }

local function ready(class) return Q .. 'ready:' .. CLASSES[class] end

local function leased(state) return state == '2' or state == '3' end

-- Takes a job out of the sets of its state.
local function leave(id, state, class, seq)
    local sits = seat(seq, id)
    if state == '0' then
        redis.call('ZREM', ready(class), sits)
        redis.call('ZREM', Q .. 'since:' .. class, id)
        redis.call('ZREM', Q .. 'delayed', sits)
        redis.call('ZREM', Q .. 'late', sits)
    elseif leased(state) then
        redis.call('ZREM', Q .. 'leases', id)
        redis.call('ZREM', Q .. 'running', id)
    elseif state ~= '1' then
        redis.call('ZREM', Q .. 'over', sits)
        if state == '5' then redis.call('ZREM', Q .. 'dead:' .. CLASSES[class], sits) end
    end
end

-- Puts a job into the sets of its state. Empty texts are times that there are not.
local function enter(id, state, class, seq, at)
    local sits = seat(seq, id)
    if state == '0' then
        redis.call('ZADD', ready(class), at.turn, sits)
        redis.call('ZADD', Q .. 'since:' .. class, at.submitted, id)
        if at.not_before ~= '' then redis.call('ZADD', Q .. 'delayed', at.not_before, sits) end
        if at.late ~= '' then redis.call('ZADD', Q .. 'late', at.late, sits) end
    elseif leased(state) then
        redis.call('ZADD', Q .. 'leases', at.lease, id)
        redis.call('ZADD', Q .. 'running', at.started, id)
    elseif state ~= '1' then
        redis.call('ZADD', Q .. 'over', at.finished, sits)
        if state == '5' then redis.call('ZADD', Q .. 'dead:' .. CLASSES[class], at.finished, sits) end
    end
end

-- Lists of all jobs in a state, by arrival; and the same of one owner.
local function list(command, id, state, owner, seq)
    for _, key in ipairs({ Q .. 'in:' .. state, owner and (Q .. 'in:' .. state .. ':' .. owner) or nil }) do
        if command == 'ZADD' then redis.call('ZADD', key, seq, id) else redis.call('ZREM', key, id) end
    end
    if owner and state == '0' then
        -- Who has jobs that wait for a worker.
        if command == 'ZADD' then
            redis.call('SADD', Q .. 'waits', owner)
        elseif redis.call('EXISTS', Q .. 'in:0:' .. owner) == 0 then
            redis.call('SREM', Q .. 'waits', owner)
        end
    end
end

-- How many jobs of an owner are in two states.
local function of_owner(owner, one, other)
    return redis.call('ZCARD', Q .. 'in:' .. one .. ':' .. owner) + redis.call('ZCARD', Q .. 'in:' .. other .. ':' .. owner)
end

-- Adds to the numbers of an owner that has or had a key.
local function charge(owner, column, by)
    if owner and owner ~= '' and redis.call('SISMEMBER', Q .. 'usage', owner) == 1 then
        redis.call('HINCRBY', Q .. 'usage:' .. owner, column, by)
    end
end

local function tally(state, class, by) redis.call('HINCRBY', Q .. 'tally', state .. ':' .. class, by) end

-- Jobs that wait, paused ones included.
local function waiting()
    local sum = 0
    for _, jobs in ipairs(redis.call('HMGET', Q .. 'tally', '0:0', '0:1', '0:2', '1:0', '1:1', '1:2')) do
        sum = sum + tonumber(jobs or 0)
    end
    return sum
end

-- What a full queue says: how many wait, and how fast the latest ones finished.
local function full(waits)
    local latest = redis.call('ZREVRANGE', Q .. 'over', 0, 31, 'WITHSCORES')
    return { 'full', int(waits), int(#latest / 2), latest[#latest] or '' }
end

-- Tells all who wait that something changed. 'queue': something that may be begun, or a wish; 'news': anything else.
local function tell(sender, what) redis.call('PUBLISH', Q .. 'news', what .. ' ' .. sender) end
