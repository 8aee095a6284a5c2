-- Ids and versions of what can be claimed, by class. ARGV: how many of each class, now.
local most, now = tonumber(ARGV[1]), tonumber(ARGV[2])
local found = { redis.call('HGET', Q .. 'meta', 'held') or '0' }
for class = 0, 2 do
    local jobs, from = {}, 0
    while #jobs < 2 * most do
        local seats = redis.call('ZRANGE', ready(int(class)), from, from + most - 1)
        if #seats == 0 then break end
        from = from + #seats
        local delayed = redis.call('ZMSCORE', Q .. 'delayed', unpack(seats))
        local late = redis.call('ZMSCORE', Q .. 'late', unpack(seats))
        for place, sits in ipairs(seats) do
            local early = delayed[place] and tonumber(delayed[place]) > now
            local over = late[place] and tonumber(late[place]) <= now
            if not early and not over and #jobs < 2 * most then
                local id = sitter(sits)
                jobs[#jobs + 1] = id
                jobs[#jobs + 1] = redis.call('HGET', Q .. 'job:' .. id, 'v') or ''
            end
        end
    end
    found[class + 2] = jobs
end
return found
