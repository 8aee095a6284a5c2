-- All workers known.
local known = redis.call('ZRANGE', Q .. 'workers', 0, -1)
table.sort(known)
for place, worker in ipairs(known) do
    local says = redis.call('HMGET', Q .. 'worker:' .. worker, 'first', 'seen', 'expires', 'cards', 'status')
    known[place] = { worker, says[1], says[2], says[3], says[4] or '', says[5] or '' }
end
return known
