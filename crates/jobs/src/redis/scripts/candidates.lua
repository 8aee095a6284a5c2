-- Ids and versions of what can be claimed, by class: the first of each class, and beyond these the first of each owner.
-- Then when owners were served last. ARGV: how many of each class, now, how many owners.
local most, now, owners_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found = { redis.call('HGET', Q .. 'meta', 'held') or '0' }
local seen = {}
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
                seen[id] = true
                jobs[#jobs + 1] = id
                jobs[#jobs + 1] = redis.call('HGET', Q .. 'job:' .. id, 'v') or ''
            end
        end
    end
    found[class + 2] = jobs
end
local owners, served = redis.call('SMEMBERS', Q .. 'waits'), {}
if #owners > owners_max then
    local at = {}
    for _, owner in ipairs(owners) do at[owner] = tonumber(redis.call('ZSCORE', Q .. 'served', owner) or 0) end
    table.sort(owners, function(a, b) return at[a] < at[b] or (at[a] == at[b] and a < b) end)
end
local many = math.min(#owners, owners_max)
local share = math.ceil(most / math.max(many, 1))
for place = 1, many do
    local owner = owners[place]
    served[#served + 1] = owner
    served[#served + 1] = redis.call('ZSCORE', Q .. 'served', owner) or '0'
    for _, id in ipairs(redis.call('ZRANGE', Q .. 'in:0:' .. owner, 0, share - 1)) do
        if not seen[id] then
            local job = redis.call('HMGET', Q .. 'job:' .. id, 'v', 'p', 'n')
            local sits = seat(job[3], id)
            local delayed, late = redis.call('ZSCORE', Q .. 'delayed', sits), redis.call('ZSCORE', Q .. 'late', sits)
            if not (delayed and tonumber(delayed) > now) and not (late and tonumber(late) <= now) then
                local jobs = found[tonumber(job[2]) + 2]
                jobs[#jobs + 1] = id
                jobs[#jobs + 1] = job[1]
            end
        end
    end
end
found[5] = served
return found
