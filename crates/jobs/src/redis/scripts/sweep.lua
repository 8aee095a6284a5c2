-- What time has come for, and what nobody needs any more. ARGV: now, events kept, most jobs, most events, what is
-- stale from then on, whose turns are forgotten. Answers with the jobs whose leases ended and those that were to begin earlier.
local now, kept, most, stale = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[5]
local last = tonumber(redis.call('HGET', Q .. 'meta', 'events') or 0)
if last > kept then
    local trimmed = int(last - kept)
    redis.call('HSET', Q .. 'meta', 'trimmed', trimmed)
    local some = redis.call('XRANGE', Q .. 'events', '-', trimmed, 'COUNT', ARGV[4])
    local logs, reached = {}, nil
    for _, entry in ipairs(some) do
        reached = entry[1]
        if entry[2][2] ~= '' then logs[entry[2][2]] = true end
    end
    if reached then
        local after = int(tonumber(string.match(reached, '^%d+')) + 1)
        redis.call('XTRIM', Q .. 'events', 'MINID', after)
        for id in pairs(logs) do
            redis.call('XTRIM', Q .. 'log:' .. id, 'MINID', after)
            if redis.call('XLEN', Q .. 'log:' .. id) == 0 then redis.call('DEL', Q .. 'log:' .. id) end
        end
    end
end
for _, command in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'orders', '-inf', '(' .. stale, 'LIMIT', 0, most)) do
    local worker = redis.call('HGET', Q .. 'order:' .. command, 'worker')
    if worker then redis.call('ZREM', Q .. 'orders:' .. worker, command) end
    redis.call('DEL', Q .. 'order:' .. command)
    redis.call('ZREM', Q .. 'orders', command)
end
for _, worker in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'workers', '-inf', '(' .. stale)) do
    redis.call('DEL', Q .. 'worker:' .. worker)
    redis.call('ZREM', Q .. 'workers', worker)
end
redis.call('ZREMRANGEBYSCORE', Q .. 'served', '-inf', ARGV[6])
local late = redis.call('ZRANGEBYSCORE', Q .. 'late', '-inf', now, 'LIMIT', 0, most)
for place, sits in ipairs(late) do late[place] = sitter(sits) end
return { redis.call('ZRANGEBYSCORE', Q .. 'leases', '-inf', now, 'LIMIT', 0, most), late }
